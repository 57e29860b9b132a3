//! Makes the limits of parts, as workers see them.

use std::sync::Arc;

use crate::compile::Compile;
use crate::compile::names::LimitKey;
use crate::model::config::Config;
use crate::model::limit::{self, LimitOf};
use crate::model::listener::Listener;
use crate::model::place::At;
use crate::model::route::Route;
use crate::model::source_limit;
use crate::table::limit::Limit;
use crate::table::load::NO_LIMIT;
use crate::table::rate::Rate;
use crate::table::routing::Protocol;
use crate::table::source_limit::SourceLimit;

impl Compile<'_> {
    /// The limit for each source of a listener.
    pub(super) fn limit_source_of_listener(
        &mut self,
        listener: &Listener,
    ) -> Option<Box<SourceLimit>> {
        self.limit_source(LimitKey::Listener, &listener.name, listener.limit_source.as_ref())
    }

    /// The limit for each source of a route.
    pub(super) fn limit_source_of_route(&mut self, route: &Route) -> Option<Box<SourceLimit>> {
        let asked = route.limit_source.as_ref().map(|of| &of.value);
        self.limit_source(LimitKey::Route, &route.name, asked)
    }

    /// The limit for each source of a part. Parts that share a name count a source together.
    fn limit_source(
        &mut self,
        own: impl Fn(String) -> LimitKey,
        name: &At<String>,
        asked: Option<&source_limit::SourceLimit>,
    ) -> Option<Box<SourceLimit>> {
        let asked = asked?;
        let opening = asked.new_per_second.map(|rate| (rate, asked.burst.unwrap_or(rate)));
        let datagrams = asked.datagrams_per_second.map(|rate| (rate, rate));
        let rate = |(per_second, burst): (u32, u32)| Rate::new(per_second.into(), burst.into());
        let bytes = asked.bytes_per_second.map(|rate| Rate::new(rate, rate));
        let shared = asked.shared.clone().map(LimitKey::Shared);
        let records = self.names.sources();
        let key = records.key_of(shared.unwrap_or_else(|| own(name.value.clone())));
        if bytes.is_some() {
            records.count_bytes();
        }
        Some(Box::new(SourceLimit {
            key,
            shared: asked.shared.as_deref().map(Arc::from),
            sessions: asked.sessions.unwrap_or(NO_LIMIT),
            opening: opening.map(rate),
            datagrams: datagrams.map(rate),
            bytes,
            prefix_v4: asked.prefix_v4,
            prefix_v6: asked.prefix_v6,
            except: asked.except.as_slice().into(),
            records,
        }))
    }

    /// The limit of a listener. Only a listener for TCP can let its clients wait: all others that
    /// share a limit refuse them.
    pub(super) fn limit_of_listener(&mut self, listener: &Listener) -> Option<Box<Limit>> {
        let asked = keys_of(self.config, listener.limit.as_ref()?)?;
        let delays = asked.delays && listener.protocol == Protocol::Tcp;
        let limit = self.limit(listener.limit.as_ref(), LimitKey::Listener, &listener.name)?;
        Some(Box::new(Limit { delays, ..*limit }))
    }

    /// The limit of a part, which refuses.
    pub(super) fn limit(
        &mut self,
        asked: Option<&LimitOf>,
        key: impl Fn(String) -> LimitKey,
        name: &At<String>,
    ) -> Option<Box<Limit>> {
        let of = asked?;
        let asked = keys_of(self.config, of)?;
        let (key, shared) = match of {
            LimitOf::Own(_) => (key(name.value.clone()), None),
            LimitOf::Shared(name) => {
                let shared = Arc::from(name.value.as_str());
                (LimitKey::Shared(name.value.clone()), Some(shared))
            }
        };
        let opening = asked.new_per_second.map(|rate| (rate, asked.burst.unwrap_or(rate)));
        let opening = opening.map(|(rate, burst)| Rate::new(rate.into(), burst.into()));
        let bytes = asked.bytes_per_second.map(|rate| Rate::new(rate, rate));
        let sessions = asked.sessions.unwrap_or(NO_LIMIT);
        let usage = self.names.usage(key);
        Some(Box::new(Limit { shared, sessions, opening, bytes, delays: false, usage }))
    }

    /// The limit of the process.
    pub(super) fn total(&mut self) -> Option<Box<Limit>> {
        let most = Some(self.config.total_sessions).filter(|most| *most > 0)?;
        let usage = self.names.usage(LimitKey::Process);
        Some(Box::new(Limit { sessions: most, ..Limit::nothing(usage) }))
    }
}

/// The keys of a part's own limit, or of the limit that it shares.
fn keys_of<'c>(config: &'c Config, of: &'c LimitOf) -> Option<&'c limit::Limit> {
    match of {
        LimitOf::Own(limit) => Some(limit),
        LimitOf::Shared(name) => {
            let found = config.shared_limits.iter().find(|of| of.name.value == name.value);
            found.map(|found| &found.limit)
        }
    }
}
