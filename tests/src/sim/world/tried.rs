//! The backends that sessions have tried.

use std::collections::BTreeMap;

use config_sync::table::routing::BackendId;
use ringway::contract::Token;

/// In order, each with the session's attempts at it.
#[derive(Debug, Default)]
pub struct Tried(BTreeMap<Token, Vec<(BackendId, u8)>>);

impl Tried {
    /// A session tries each backend of its route once, with at most so many attempts in a row.
    pub fn attempt(&mut self, token: Token, backend: BackendId, most: u8) {
        let tried = self.0.entry(token).or_default();
        if let Some((last, attempts)) = tried.last_mut()
            && *last == backend
        {
            *attempts += 1;
            assert!(*attempts <= most, "{attempts} attempts at {backend:?}, which has {most}");
            return;
        }
        let again = tried.iter().any(|(before, _)| *before == backend);
        assert!(!again, "a session tries a backend again: {tried:?}, {backend:?}");
        tried.push((backend, 1));
    }
}
