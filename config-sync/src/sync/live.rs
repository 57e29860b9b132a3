//! What an operator asks of what runs.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::compile::names::Names;
use crate::compile::whole::Whole;
use crate::health;
use crate::health::checks::Checks;
use crate::health::ejection::Figure;
use crate::model::config::Config;
use crate::resolve::Figures;
use crate::sync::ConfigSync;
use crate::sync::overrides::{self, Action, Asked, Kind, Of, Override, Shown, said, told};
use crate::sync::{drained, saved};
use crate::table::request::Request;

/// For this long a listener stays drained whose address can't be bound again.
const AGAIN: Duration = Duration::from_secs(5);

impl ConfigSync {
    /// The health of the endpoints that are checked, and the ejections of each backend.
    pub fn figures(&self) -> (health::Figures, Vec<Figure>) {
        (self.checks.health.figures(), self.checks.ejections.figures())
    }

    pub fn resolver_figures(&self) -> Figures {
        self.lookups.resolve.figures()
    }

    /// Passes a request about sessions and flows on to a worker. False: the worker has ended, or
    /// there is no such worker.
    pub fn ask(&mut self, worker: usize, request: Request) -> bool {
        self.publisher.ask(worker, request)
    }

    /// Wakes every worker, so that it makes a turn.
    pub fn wake_workers(&self) {
        self.publisher.wake();
    }

    /// Whether a worker has not been sent a request yet, because it has not taken the one before.
    pub fn has_requests(&self) -> bool {
        self.publisher.has_requests()
    }

    /// The names of ids, for another thread. The thread keeps them for a moment only, because the
    /// next change copies all names that somebody keeps.
    pub fn shared_names(&self) -> Arc<Names> {
        Arc::clone(&self.names)
    }

    /// Does what an operator says, for some time or until it is taken back. Returns the full name
    /// of what was meant.
    ///
    /// # Errors
    /// Nothing, or more than one thing, is meant; or the action does not fit. The text is for the
    /// operator.
    #[expect(clippy::disallowed_methods, reason = "overrides end by the clock")]
    pub fn set_override(
        &mut self,
        asked: Asked<'_>,
        action: Action,
        lasts: Option<Duration>,
    ) -> Result<String, String> {
        asked.check(action)?;
        let of = self.meant(asked)?;
        let now = Instant::now();
        let until = match lasts {
            Some(lasts) => Some(now.checked_add(lasts).ok_or("for_seconds: too long")?),
            None => None,
        };
        let name = said(&of);
        let lasts = lasts.map(|lasts| format!(" for {} s", lasts.as_secs())).unwrap_or_default();
        tracing::info!("override of {} by an operator{lasts}: {action}", told(&of));
        self.overrides.set(of, action, until);
        self.publish_pickable(now);
        Ok(name)
    }

    /// Takes back what an operator has said. Without a kind: all about what is meant.
    ///
    /// # Errors
    /// Nothing, or more than one thing, is meant; nothing was said about it; or an address of a
    /// listener can't be bound again, and the listener stays drained.
    #[expect(clippy::disallowed_methods, reason = "overrides end by the clock")]
    pub fn take_back(&mut self, asked: Asked<'_>, kind: Option<Kind>) -> Result<String, String> {
        let of = self.meant(asked)?;
        let name = said(&of);
        let before = self.overrides.clone();
        if !self.overrides.remove(&of, kind) {
            let what =
                kind.map_or_else(|| "override".to_owned(), |kind| format!("{kind} override"));
            let of = told(&of);
            return Err(format!("{of} has no {what}; `ringway overrides` lists them"));
        }
        if let Err(error) = self.open_again() {
            self.overrides = before;
            return Err(format!("{} stays drained: {error}", told(&of)));
        }
        tracing::info!("override of {} is taken back by an operator", told(&of));
        self.publish_pickable(Instant::now());
        Ok(name)
    }

    /// Opens the sockets of listeners that are not drained any more.
    fn open_again(&mut self) -> Result<(), String> {
        let Some(whole) = &self.whole else { return Ok(()) };
        let drained = self.overrides.drained_listeners();
        let table = drained::without(Cow::Borrowed(&whole.table), &drained);
        let errors = self.publisher.prepare(&table);
        match errors.first() {
            None => Ok(()),
            Some(error) => {
                self.publisher.discard();
                Err(error.to_string())
            }
        }
    }

    /// Ends the overrides whose time is over. A listener with an address that can't be bound again
    /// stays drained for some seconds more. True if there were some.
    pub(super) fn expire_overrides(&mut self, now: Instant) -> bool {
        let (some, listeners) = self.overrides.expire(now);
        if !listeners.is_empty()
            && let Err(error) = self.open_again()
        {
            for of in listeners {
                tracing::error!("{} stays drained for {AGAIN:?} more: {error}", told(&of));
                self.overrides.set(of, Action::Drain, Some(now + AGAIN));
            }
        }
        some
    }

    /// The listeners that an operator drains.
    pub fn drained_listeners(&self) -> BTreeSet<Arc<str>> {
        self.overrides.drained_listeners()
    }

    #[expect(clippy::disallowed_methods, reason = "overrides end by the clock")]
    pub fn overrides(&self) -> Vec<Override> {
        self.overrides.list(Instant::now())
    }

    /// Every endpoint of the configuration in force that has an address.
    #[expect(clippy::disallowed_methods, reason = "endpoints warm up by the clock")]
    pub fn endpoints(&self) -> Vec<Shown> {
        let Some(whole) = &self.whole else { return Vec::new() };
        let Checks { health, ejections, warming, .. } = &self.checks;
        let known = (health, ejections, &self.overrides, warming);
        overrides::shown((whole, &self.table), known, Instant::now())
    }

    /// Takes up the overrides that were saved. The first table has them already. One of something
    /// that is not there any more is left out.
    ///
    /// # Errors
    /// The file can't be read, or is wrong.
    pub(super) fn restore(&mut self, config: &Config, whole: &Whole) -> Result<(), String> {
        if let Some(all) = self.inherited.take() {
            self.take_up(all, config, whole);
            return Ok(());
        }
        let Some(file) = config.admin_overrides_file.as_ref().filter(|_| self.whole.is_none())
        else {
            return Ok(());
        };
        let all = saved::read(&file.value);
        for of in all.map_err(|fault| file.problem(fault).to_string())? {
            let action = of.action()?;
            match overrides::meant((config, whole), of.asked()?) {
                Ok(at) => {
                    tracing::info!("override of {} is back: {action}", told(&at));
                    self.overrides.set(at, action, None);
                }
                Err(why) => tracing::warn!("an override is not back: {why}: {action}"),
            }
        }
        Ok(())
    }

    /// The overrides of the process before hold in this one, in place of the saved ones.
    pub fn inherit(&mut self, all: Vec<Override>) {
        self.inherited = Some(all);
    }

    /// From now on nobody changes the overrides, or somebody may again.
    pub fn freeze_overrides(&mut self, frozen: bool) {
        self.frozen = frozen;
    }

    #[expect(clippy::disallowed_methods, reason = "overrides end by the clock")]
    fn take_up(&mut self, all: Vec<Override>, config: &Config, whole: &Whole) {
        for Override { listener, backend, endpoint, action, left } in all {
            let asked = match (&listener, &backend, &endpoint) {
                (Some(listener), _, _) => Asked::Listener(listener),
                (None, Some(backend), None) => Asked::Backend(backend),
                (None, backend, Some(endpoint)) => Asked::Endpoint(backend.as_deref(), endpoint),
                (None, None, None) => continue,
            };
            let found = asked.check(action).and_then(|()| overrides::meant((config, whole), asked));
            match found {
                Ok(of) => {
                    let until = left.and_then(|left| Instant::now().checked_add(left));
                    self.overrides.set(of, action, until);
                }
                Err(why) => tracing::warn!("an override has not come along: {why}: {action}"),
            }
        }
        if !self.overrides.is_empty() {
            tracing::info!("overrides of the process before: {}", self.overrides.len());
        }
    }

    fn meant(&self, asked: Asked<'_>) -> Result<Of, String> {
        if self.draining {
            return Err("the gateway is ending".to_owned());
        }
        if self.frozen {
            return Err("an upgrade is under way; try again in a moment".to_owned());
        }
        let (Some(whole), Some(config)) = (&self.whole, self.config()) else {
            return Err("there is no configuration yet".to_owned());
        };
        overrides::meant((config, whole), asked)
    }
}
