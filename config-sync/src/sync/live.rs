//! What an operator asks of what runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::compile::names::Names;
use crate::compile::whole::Whole;
use crate::health;
use crate::health::checks::Checks;
use crate::health::ejection::Figure;
use crate::model::config::Config;
use crate::model::endpoint::MAX_WEIGHT;
use crate::resolve::Figures;
use crate::sync::ConfigSync;
use crate::sync::overrides::{self, Action, Kind, Of, Override, Shown, said};
use crate::sync::saved;
use crate::table::request::Request;

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

    /// The names of ids, for another thread. The thread keeps them for a moment only, because the
    /// next change copies all names that somebody keeps.
    pub fn shared_names(&self) -> Arc<Names> {
        Arc::clone(&self.names)
    }

    /// Does what an operator says about an endpoint, for some time or until it is taken back.
    /// Returns the endpoint's full name.
    ///
    /// # Errors
    /// No endpoint, or more than one, is meant; or the weight is too large. The text is for the
    /// operator.
    #[expect(clippy::disallowed_methods, reason = "overrides end by the clock")]
    pub fn override_endpoint(
        &mut self,
        (backend, endpoint): (Option<&str>, &str),
        action: Action,
        lasts: Option<Duration>,
    ) -> Result<String, String> {
        if let Action::Weight(weight) = action
            && weight > MAX_WEIGHT
        {
            return Err(format!("weight: {weight} is too large: 0 to {MAX_WEIGHT}"));
        }
        let of = self.meant(backend, endpoint)?;
        let now = Instant::now();
        let until = match lasts {
            Some(lasts) => Some(now.checked_add(lasts).ok_or("for_seconds: too long")?),
            None => None,
        };
        let name = said(&of);
        let lasts = lasts.map(|lasts| format!(" for {} s", lasts.as_secs())).unwrap_or_default();
        tracing::info!("override of endpoint {name} by an operator{lasts}: {action}");
        self.overrides.set(of, action, until);
        self.publish_pickable(now);
        Ok(name)
    }

    /// Takes back what an operator has said. Without a kind: all about the endpoint.
    ///
    /// # Errors
    /// No endpoint, or more than one, is meant; or nothing was said about it.
    #[expect(clippy::disallowed_methods, reason = "overrides end by the clock")]
    pub fn take_back(
        &mut self,
        (backend, endpoint): (Option<&str>, &str),
        kind: Option<Kind>,
    ) -> Result<String, String> {
        let of = self.meant(backend, endpoint)?;
        let name = said(&of);
        if !self.overrides.remove(&of, kind) {
            let what =
                kind.map_or_else(|| "override".to_owned(), |kind| format!("{kind} override"));
            return Err(format!("endpoint {name} has no {what}; `ringway overrides` lists them"));
        }
        tracing::info!("override of endpoint {name} is taken back by an operator");
        self.publish_pickable(Instant::now());
        Ok(name)
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

    /// Takes up the overrides that were saved. The first table has them already. One of an endpoint
    /// that is not there any more is left out.
    ///
    /// # Errors
    /// The file can't be read, or is wrong.
    pub(super) fn restore(&mut self, config: &Config, whole: &Whole) -> Result<(), String> {
        let Some(file) = &config.admin_overrides_file else { return Ok(()) };
        let all = saved::read(&file.value);
        for of in all.map_err(|fault| file.problem(fault).to_string())? {
            let action = of.action()?;
            match overrides::meant((config, whole), Some(&of.backend), &of.endpoint) {
                Ok(at) => {
                    tracing::info!("override of endpoint {} is back: {action}", said(&at));
                    self.overrides.set(at, action, None);
                }
                Err(why) => {
                    tracing::warn!("override of {} is not back: {why}: {action}", of.endpoint);
                }
            }
        }
        Ok(())
    }

    fn meant(&self, backend: Option<&str>, asked: &str) -> Result<Of, String> {
        if self.draining {
            return Err("the gateway is ending".to_owned());
        }
        let (Some(whole), Some(config)) = (&self.whole, self.config()) else {
            return Err("there is no configuration yet".to_owned());
        };
        overrides::meant((config, whole), backend, asked)
    }
}
