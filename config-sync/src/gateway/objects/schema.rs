//! Says what becomes of an object of a file, by its group, version and kind; and reads objects of
//! files and of a cluster into their types.

use serde::de::DeserializeOwned;
use serde_ignored::Path;
use serde_json::Value;

use crate::gateway::objects::definitions::{self, DISCOVERY};
use crate::gateway::objects::{GROUP, X_GROUP, policy};
use crate::model::place::did_you_mean;

/// The groups of the kinds that only a gateway has.
const OURS: [&str; 3] = [GROUP, X_GROUP, policy::GROUP];

/// Kinds that exist, and that Ringway does not serve.
const NOT_SERVED: [(&str, &str); 3] =
    [(GROUP, "GRPCRoute"), (X_GROUP, "XBackendTrafficPolicy"), (X_GROUP, "XMesh")];

/// Kubernetes' own kinds of the group without a name that have nothing to do with a gateway.
const OF_OTHERS: [&str; 12] = [
    "Binding",
    "ComponentStatus",
    "Event",
    "LimitRange",
    "Node",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Pod",
    "PodTemplate",
    "ReplicationController",
    "ResourceQuota",
    "ServiceAccount",
];

/// Fields of Kubernetes' own kinds and of metadata, as suggestions for unknown fields. The
/// definitions suggest the fields of other kinds.
const FIELDS: &[&str] = &[
    "addressType",
    "addresses",
    "annotations",
    "clusterIP",
    "conditions",
    "data",
    "endpoints",
    "externalName",
    "hints",
    "labels",
    "metadata",
    "name",
    "namespace",
    "nodeName",
    "port",
    "ports",
    "protocol",
    "ready",
    "selector",
    "serving",
    "spec",
    "stringData",
    "targetPort",
    "targetRef",
    "terminating",
    "type",
    "zone",
];

/// What becomes of an object.
#[derive(Debug)]
pub(in crate::gateway) enum Kind {
    /// Ringway reads the object, which must fit this definition.
    Read(&'static Value),
    /// The object is for others. The warning is for an object that is perhaps meant for Ringway.
    Skipped(Option<&'static str>),
}

/// # Errors
/// Why no object of this group, version and kind can be meant, as `FIELD: MESSAGE`.
pub(in crate::gateway) fn kind((group, version, kind): (&str, &str, &str)) -> Result<Kind, String> {
    let (all, given) = (definitions::all(), api_version(group, version));
    if let Some(versions) = all.get(&(group.to_owned(), kind.to_owned())) {
        return versions.get(version).map(Kind::Read).ok_or_else(|| {
            let known: Vec<_> = versions.keys().map(|known| api_version(group, known)).collect();
            format!("apiVersion: {kind} has no version {given}; write {}", known.join(" or "))
        });
    }
    let is_known = OURS.contains(&group) || ["", DISCOVERY].contains(&group);
    if let Some((other, _)) = all.keys().find(|(_, known)| known == kind) {
        // Some foreign groups have kinds of equal names (Knative's Service).
        let is_meant = is_known || OURS.contains(&other.as_str()) && is_near(group, other);
        let versions = &all[&(other.clone(), kind.to_owned())];
        let right = api_version(other, versions.keys().next().map_or("v1", String::as_str));
        return match is_meant {
            true => Err(format!("apiVersion: {given} has no kind {kind}; write {right}")),
            false => Ok(Kind::Skipped(None)),
        };
    }
    if NOT_SERVED.contains(&(group, kind)) {
        return Ok(Kind::Skipped(Some("kind: Ringway does not serve this kind, and skips it")));
    }
    if (group, kind) == ("", "Endpoints") {
        return Ok(Kind::Skipped(Some("kind: it is skipped; write an EndpointSlice in its place")));
    }
    if !is_known || group.is_empty() && OF_OTHERS.contains(&kind) {
        return Ok(Kind::Skipped(None));
    }
    let of_group = all.keys().filter(|(of, _)| of == group).map(|(_, kind)| kind.as_str());
    let near = did_you_mean(kind, of_group);
    Err(format!("kind: {given} has no kind {kind}{near}"))
}

fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

fn is_near(group: &str, other: &str) -> bool {
    !did_you_mean(group, std::iter::once(other)).is_empty()
}

/// Reads an object into its type, and says which fields the type does not have. Objects of files
/// and of a cluster are read by this one way, because the code for each type and way is large.
///
/// # Errors
/// The field that can't be read, and why.
pub(in crate::gateway) fn read<T: DeserializeOwned>(
    value: Value,
    is_secret: bool,
) -> Result<(T, Vec<String>), (String, String)> {
    let mut object = None;
    let unread = track(value, is_secret, &mut |deserializer| {
        object = Some(erased_serde::deserialize(deserializer)?);
        Ok(())
    })?;
    Ok((object.expect("it was read"), unread))
}

type ReadInto<'a> =
    &'a mut dyn FnMut(&mut dyn erased_serde::Deserializer<'_>) -> Result<(), erased_serde::Error>;

/// Keeps track of what is read. It does not know the type, so there is one such function for all
/// types, and one for each of the many below it.
fn track(
    value: Value,
    is_secret: bool,
    read: ReadInto<'_>,
) -> Result<Vec<String>, (String, String)> {
    let (mut track, mut unread) = (serde_path_to_error::Track::new(), Vec::new());
    let tracked = serde_path_to_error::Deserializer::new(value, &mut track);
    let mut note = |path: Path<'_>| unread.push(field(&path));
    let noted = serde_ignored::Deserializer::new(tracked, &mut note);
    let result = read(&mut <dyn erased_serde::Deserializer<'_>>::erase(noted));
    match result {
        Ok(()) => Ok(unread),
        Err(error) => {
            // The message could quote the value that could not be read.
            let message =
                if is_secret { "is not what a Secret has there".into() } else { error.to_string() };
            Err((track.path().to_string(), message))
        }
    }
}

/// A suggestion for a field that [`read`] has not read.
pub(in crate::gateway) fn suggestion(field: &str) -> String {
    let last = field.rsplit('.').next().unwrap_or_default();
    did_you_mean(last, FIELDS.iter().copied())
}

fn field(path: &Path<'_>) -> String {
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", field(parent)),
        Path::Map { parent, key } => {
            let before = field(parent);
            let dot = if before.is_empty() { "" } else { "." };
            format!("{before}{dot}{key}")
        }
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => field(parent),
    }
}
