//! The lookups that are under way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::model::config::Config;
use crate::model::endpoint::{DnsName, Resolved};
use crate::model::resolver::Resolver;
use crate::resolve::lookup::Client;
use crate::resolve::{Answer, Resolve, names};

/// The longest time of one lookup, with all its queries.
const MOST: Duration = Duration::from_secs(15);

/// How long a configuration waits for the addresses of its new names.
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) type Answers = BTreeMap<DnsName, Result<Answer, String>>;

/// Makes the lookups that are due.
#[derive(Default)]
pub(crate) struct Lookups {
    pub(crate) resolve: Resolve,
    under_way: JoinSet<(DnsName, Result<Answer, String>)>,
    client: Option<Arc<Client>>,
}

impl Lookups {
    /// Follows the names of another configuration. `answers` has what was found already.
    pub(crate) fn follow(&mut self, config: &Config, answers: Answers, now: Instant) {
        let next = self.resolve.following(config, now);
        if next.settings() != self.resolve.settings() {
            self.client = None;
        }
        self.resolve = next;
        for (name, result) in answers {
            self.resolve.found(&name, result, now);
        }
    }

    /// Starts and ends lookups. The caller calls this repeatedly, on a tokio runtime.
    pub(crate) fn tick(&mut self, now: Instant) {
        while let Some(ended) = self.under_way.try_join_next() {
            if let Ok((name, result)) = ended {
                self.resolve.found(&name, result, now);
            }
        }
        while let Some(name) = self.resolve.due(self.under_way.len(), now) {
            let settings = self.resolve.settings();
            let client = self.client.get_or_insert_with(|| Arc::new(Client::new(settings)));
            let client = Arc::clone(client);
            self.under_way.spawn(async move {
                let result = look_up(&client, &name).await;
                (name, result)
            });
        }
    }
}

async fn look_up(client: &Arc<Client>, name: &DnsName) -> Result<Answer, String> {
    let found = timeout(MOST, client.look_up(name)).await;
    found.unwrap_or_else(|_| Err(format!("no answer within {} s", MOST.as_secs())))
}

/// Looks up the names of `config` that `known` does not have. This blocks for at most two seconds:
/// names without an answer until then are missing, and looked up again later.
pub(crate) fn first(config: &Config, known: &Resolved) -> Answers {
    let new: Vec<DnsName> =
        names(config).into_iter().filter(|name| !known.0.contains_key(name)).cloned().collect();
    if new.is_empty() {
        return Answers::new();
    }
    let settings = config.resolver.clone();
    // The caller may be on a thread of a runtime already, which must not begin another.
    let thread = std::thread::Builder::new().name("resolve".to_owned());
    let answers = thread.spawn(move || all(new, &settings));
    answers.ok().and_then(|thread| thread.join().ok()).unwrap_or_default()
}

fn all(names: Vec<DnsName>, settings: &Resolver) -> Answers {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return Answers::new() };
    runtime.block_on(async {
        let client = Arc::new(Client::new(settings));
        let (mut names, mut under_way) = (names.into_iter(), JoinSet::new());
        let mut answers = Answers::new();
        let gather = async {
            loop {
                for name in names.by_ref().take(super::MOST_UNDER_WAY - under_way.len()) {
                    let client = Arc::clone(&client);
                    under_way.spawn(async move {
                        let result = look_up(&client, &name).await;
                        (name, result)
                    });
                }
                match under_way.join_next().await {
                    Some(Ok((name, result))) => _ = answers.insert(name, result),
                    Some(Err(_)) => {}
                    None => return,
                }
            }
        };
        _ = timeout(PATIENCE, gather).await;
        answers
    })
}
