//! Writes Events on objects, for problems that a user must act on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::Instant;

use crate::gateway::follow::causes::{Causes, is_ending};
use crate::gateway::translate::notice::Notice;

/// The most Events for one configuration: faults in hundreds of objects have one cause.
const MOST: usize = 50;

/// The API server's limit for a note (events.k8s.io/v1, `Event.note`), in bytes.
const NOTE: usize = 1_024;

/// A notice that comes again within this time counts in the series of the existing Event. The API
/// server keeps Events for this time by default (`--event-ttl`).
const SERIES: Duration = Duration::from_secs(3_600);

/// The most Events that are remembered for series.
const KEPT: usize = 1_000;

/// Writes each notice once, and again only after the problem was gone in between.
#[derive(Default)]
pub struct Events {
    said: BTreeSet<Said>,
    written: BTreeMap<Said, Written>,
}

/// An Event that exists.
struct Written {
    name: String,
    count: i32,
    latest: Instant,
}

type Said = (String, String, String, String);

impl Events {
    /// Writes the new `notices`. A failed write is not tried again, because the object's status has
    /// the text too.
    pub async fn tell(
        &mut self,
        (client, causes): (&Client, &Causes),
        controller: &str,
        me: &str,
        notices: &[Notice],
    ) {
        let now: BTreeSet<Said> = notices.iter().map(said_of).collect();
        self.said.retain(|said| now.contains(said));
        let new: Vec<_> =
            notices.iter().filter(|notice| !self.said.contains(&said_of(notice))).collect();
        if new.len() > MOST {
            let more = new.len() - MOST;
            tracing::warn!("{more} more events are left out; the objects' statuses say the same");
        }
        self.written.retain(|_, written| written.latest.elapsed() < SERIES);
        for notice in new.into_iter().take(MOST) {
            match self.write(client, event(notice, controller, me), notice).await {
                // The namespace of the object is ending.
                Err(kube::Error::Api(status)) if is_ending(&status) => {}
                Err(error) => {
                    let line = format!("an Event on {} {}", notice.kind, notice.name);
                    causes.say("Events", &line, &error);
                }
                Ok(()) => {}
            }
        }
        self.said = now;
    }

    async fn write(&mut self, client: &Client, event: Event, notice: &Notice) -> kube::Result<()> {
        let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
        let api: Api<Event> = Api::namespaced(client.clone(), namespace);
        let key = said_of(notice);
        if let Some(written) = self.written.get_mut(&key) {
            written.count = written.count.saturating_add(1);
            written.latest = Instant::now();
            let last = MicroTime(Timestamp::now());
            let series = json!({ "count": written.count, "lastObservedTime": last });
            let patch = Patch::Merge(json!({ "series": series }));
            match api.patch(&written.name, &PatchParams::default(), &patch).await {
                // The Event was too old, and is gone.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                result => return result.map(drop),
            }
        }
        tracing::warn!("{notice}");
        let name = event.metadata.name.clone().unwrap_or_default();
        api.create(&PostParams::default(), &event).await?;
        if self.written.len() < KEPT {
            self.written.insert(key, Written { name, count: 1, latest: Instant::now() });
        }
        Ok(())
    }
}

fn said_of(notice: &Notice) -> Said {
    let namespace = notice.namespace.clone().unwrap_or_default();
    let object = format!("{}/{namespace}/{}", notice.kind, notice.name);
    let uid = notice.uid.clone().unwrap_or_default();
    (object, uid, notice.reason.clone(), notice.message.clone())
}

fn event(notice: &Notice, controller: &str, me: &str) -> Event {
    let now = Timestamp::now();
    // A name has at most 253 bytes, and the object's name may have as many.
    let name = cut(&notice.name, 200).trim_end_matches(['.', '-']);
    // Events about objects without a namespace are in `default`, as with client-go.
    let namespace = notice.namespace.clone().unwrap_or_else(|| "default".into());
    Event {
        action: Some("Translate".into()),
        event_time: Some(MicroTime(now)),
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", now.as_nanosecond())),
            namespace: Some(namespace),
            ..ObjectMeta::default()
        },
        note: Some(cut(&notice.message, NOTE).to_owned()),
        reason: Some(cut(&notice.reason, 128).to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some(notice.kind.api_version()),
            kind: Some(notice.kind.name().into()),
            name: Some(notice.name.clone()),
            namespace: notice.namespace.clone(),
            uid: notice.uid.clone(),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(controller.to_owned()),
        reporting_instance: Some(cut(me, 128).to_owned()),
        type_: Some("Warning".into()),
        ..Event::default()
    }
}

fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::status::Kind;

    fn notice(kind: Kind, name: &str) -> Notice {
        Notice {
            kind,
            namespace: Some("shop".into()),
            name: name.into(),
            uid: Some("1-2".into()),
            reason: "AddressNotUsable".into(),
            message: "\u{e4}".repeat(1_000),
            passes: false,
        }
    }

    #[test]
    fn event_is_on_a_version_that_there_is() {
        let version = |kind| {
            let event = event(&notice(kind, "a"), "ringway.dev/gateway-controller", "node");
            event.regarding.and_then(|regarding| regarding.api_version)
        };
        assert_eq!(version(Kind::Gateway).as_deref(), Some("gateway.networking.k8s.io/v1"));
        assert_eq!(version(Kind::L4Policy).as_deref(), Some("ringway.dev/v1alpha1"));
    }

    #[test]
    fn event_keeps_within_the_limits_of_the_api() {
        let notice = notice(Kind::Gateway, &"g".repeat(253));
        let event = event(&notice, "ringway.dev/gateway-controller", "node");
        assert!(event.metadata.name.as_ref().is_some_and(|name| name.len() <= 253));
        assert_eq!(event.note.map(|note| note.len()), Some(NOTE));
        let regarding = event.regarding.expect("an object");
        assert_eq!(regarding.name.map(|name| name.len()), Some(253));
        assert_eq!(regarding.namespace.as_deref(), Some("shop"));
    }
}
