//! Follows network interfaces that were deleted and made anew.
//!
//! A new interface has a new number, even under its old name. Workers bind sockets to the number,
//! because the number costs no look-up for each session. Link-local addresses have the number as
//! their scope. So the numbers of the table must follow.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::compile;
use crate::model::config::Config;
use crate::resolve::lookups::Answers;
use crate::sync::drained;
use crate::sync::{ConfigSync, InForce};

impl ConfigSync {
    /// Publishes the configuration in force with the numbers that its interfaces have now, if a
    /// number has changed. The caller calls this about once a second. True if a new table is out.
    #[expect(clippy::disallowed_methods, reason = "for pauses between attempts")]
    pub fn follow_interfaces(&mut self) -> bool {
        let now = Instant::now();
        // A reading that is under way finds the numbers itself.
        let pauses = self.interfaces.again.due().is_some_and(|due| now < due);
        if self.draining || self.is_reading || pauses {
            return false;
        }
        let Some(in_force) = self.in_force.clone() else { return false };
        let changed = self.interfaces.changed(&in_force.config);
        if changed.by_name.is_empty() {
            return false;
        }
        for (name, number) in &changed.by_name {
            tracing::info!("interface {name} is a new one, with the number {number}");
        }
        let mut config = in_force.config.clone();
        for backend in &mut config.backends {
            if let Some(interface) = &mut backend.interface {
                changed.renumber(&mut interface.value);
            }
            for endpoint in &mut backend.endpoints {
                changed.readdress_endpoint(&mut endpoint.address.value);
            }
        }
        // An address may come to its interface later. Backends must not wait for it.
        let mut all = config.clone();
        for listener in &mut all.listeners {
            if let Some(interface) = &mut listener.interface {
                changed.renumber(interface);
            }
            for address in &mut listener.addresses {
                changed.readdress(&mut address.value);
            }
        }
        let text = in_force.text().to_owned();
        let mut published = config != in_force.config && self.put_numbers(config, text.clone());
        if all.listeners != in_force.config.listeners {
            published |= self.put_numbers(all, text);
        }
        published
    }

    #[expect(clippy::disallowed_methods, reason = "for pauses between attempts")]
    fn put_numbers(&mut self, config: Config, text: String) -> bool {
        match self.try_numbers(config, text) {
            Ok(()) => {
                self.interfaces.succeeded();
                true
            }
            Err(why) => {
                self.interfaces.again.failed(Instant::now());
                if self.interfaces.failed.as_ref() != Some(&why) {
                    tracing::error!("new interfaces are not in use yet: {why}");
                    self.interfaces.failed = Some(why);
                }
                false
            }
        }
    }

    fn try_numbers(&mut self, config: Config, text: String) -> Result<(), String> {
        let resolved = self.lookups.resolve.resolved();
        let whole = compile::whole(&config, &resolved, Arc::make_mut(&mut self.names));
        let whole = whole.map_err(|problems| problems.to_string())?;
        let drained = self.overrides.drained_listeners();
        let table = drained::without(Cow::Borrowed(&whole.table), &drained);
        self.open(&config, &table)?;
        self.give_out(&config, whole, Answers::new(), Duration::ZERO)?;
        self.generation += 1;
        self.in_force = Some(Arc::new(InForce::new(config, text)));
        Ok(())
    }
}
