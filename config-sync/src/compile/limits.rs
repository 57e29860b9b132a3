//! Makes the limits of parts, as workers see them.

use std::sync::Arc;

use crate::compile::Compile;
use crate::compile::names::LimitKey;
use crate::model::limit::LimitOf;
use crate::model::place::At;
use crate::table::limit::Limit;
use crate::table::load::NO_LIMIT;
use crate::table::rate::Rate;

impl Compile<'_> {
    /// The limit of a part.
    pub(super) fn limit(
        &mut self,
        asked: Option<&LimitOf>,
        key: impl Fn(String) -> LimitKey,
        name: &At<String>,
    ) -> Option<Box<Limit>> {
        let (asked, key, shared) = match asked? {
            LimitOf::Own(limit) => (limit, key(name.value.clone()), None),
            LimitOf::Shared(name) => {
                let mut known = self.config.shared_limits.iter();
                let found = known.find(|of| of.name.value == name.value)?;
                let shared = Arc::from(name.value.as_str());
                (&found.limit, LimitKey::Shared(name.value.clone()), Some(shared))
            }
        };
        let opening = asked.new_per_second.map(|rate| (rate, asked.burst.unwrap_or(rate)));
        let opening = opening.map(|(rate, burst)| Rate::new(rate.into(), burst.into()));
        let bytes = asked.bytes_per_second.map(|rate| Rate::new(rate, rate));
        let sessions = asked.sessions.unwrap_or(NO_LIMIT);
        let (delays, usage) = (asked.delays, self.names.usage(key));
        Some(Box::new(Limit { shared, sessions, opening, bytes, delays, usage }))
    }

    /// The limit of the process.
    pub(super) fn total(&mut self) -> Option<Box<Limit>> {
        let most = Some(self.config.total_sessions).filter(|most| *most > 0)?;
        let usage = self.names.usage(LimitKey::Process);
        Some(Box::new(Limit { sessions: most, ..Limit::nothing(usage) }))
    }
}
