//! Connects a cluster to the workers: objects -> configuration -> table -> applied by all workers.

use std::collections::BTreeMap;
use std::sync::Arc;

use config_sync::gateway::follow::cluster::{Cluster, Figures};
use config_sync::gateway::translate::Translation;
use config_sync::sync::ConfigSync;
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub struct Following {
    cluster: Cluster,
    /// The latest translation, in force or refused.
    latest: Option<Arc<Translation>>,
    waiting: Option<Waiting>,
    /// The log's last message about a translation that was refused.
    refused: String,
}

/// A table that some worker may not have applied yet.
struct Waiting {
    generation: u64,
    translation: Arc<Translation>,
    failed: BTreeMap<String, String>,
}

/// The change that readers of the configuration must learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    Nothing,
    Published,
    Refused,
}

impl Following {
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster, latest: None, waiting: None, refused: String::new() }
    }

    /// Follows the cluster. The caller calls this repeatedly. `applied` is the generation that all
    /// workers have reached.
    pub fn tick(&mut self, sync: &mut ConfigSync, applied: u64) -> News {
        let news = self.follow(sync);
        if let Some(waiting) = self.waiting.take_if(|waiting| applied >= waiting.generation) {
            self.cluster.applied(waiting.translation, waiting.failed);
        }
        news
    }

    pub fn figures(&self) -> Figures {
        self.cluster.figures()
    }

    /// Tells other replicas not to wait for this replica.
    pub fn leave(&self) -> JoinHandle<()> {
        tokio::spawn(self.cluster.leave())
    }

    fn follow(&mut self, sync: &mut ConfigSync) -> News {
        let translated = self.cluster.translated();
        let again = || self.latest.clone().filter(|_| sync.wants_put());
        let Some(latest) = translated.or_else(again) else { return News::Nothing };
        let began = Instant::now();
        self.latest = Some(Arc::clone(&latest));
        let news = match sync.put(&latest.config) {
            Ok(put) => {
                self.refused.clear();
                let (generation, failed) = (put.generation, put.failed);
                self.waiting = Some(Waiting { generation, translation: latest, failed });
                if put.published { News::Published } else { News::Nothing }
            }
            Err(why) => {
                if why != self.refused {
                    why.lines().for_each(|problem| tracing::error!("{problem}"));
                    tracing::error!(
                        "the cluster's configuration is refused; the previous one stays in force"
                    );
                    self.refused.clone_from(&why);
                }
                self.waiting = None;
                self.cluster.refused(latest, why);
                News::Refused
            }
        };
        self.cluster.took(began.elapsed());
        news
    }
}
