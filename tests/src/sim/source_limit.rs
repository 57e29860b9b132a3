//! What the sources of a simulated listener may have.

use std::sync::Arc;

use config_sync::table::load::NO_LIMIT;
use config_sync::table::rate::Rate;
use config_sync::table::source_limit::{SourceLimit, SourceRecords};

use crate::sim::limit::some_bytes;
use crate::sim::rng::Rng;

/// Few records, so that many sources press on them.
pub const RECORDS: usize = 64;

/// The limit of a listener, or none.
pub fn some_limit(
    rng: &mut Rng,
    key: u64,
    records: &Arc<SourceRecords>,
) -> Option<Box<SourceLimit>> {
    if !rng.per_mille(300) {
        return None;
    }
    let mut some_rate =
        || rng.per_mille(400).then(|| Rate::new(rng.scale(1, 10_000), rng.scale(1, 50)));
    let (opening, datagrams) = (some_rate(), some_rate());
    let bytes = some_bytes(rng);
    records.count_bytes();
    Some(Box::new(SourceLimit {
        key,
        shared: None,
        sessions: rng.pick(&[NO_LIMIT, 1, 2, 5]),
        opening,
        datagrams,
        bytes,
        prefix_v4: rng.pick(&[32, 32, 28, 16]),
        prefix_v6: 64,
        except: if rng.per_mille(300) {
            Box::new([EXCEPT.parse().expect("a range")])
        } else {
            Box::default()
        },
        records: Arc::clone(records),
    }))
}

const EXCEPT: &str = "198.18.0.0/29";
