//! Finds objects at which translation panics, which is a fault of Ringway. Each such object is left
//! out, so that it holds up no other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use kube::Resource;

use crate::gateway::objects::Objects;
use crate::gateway::status::Kind;
use crate::gateway::translate::notice::Notice;

/// The most objects that are left out. More in one cluster are no fault of single objects.
const MOST: usize = 16;

/// An object that is left out until the object changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    kind: &'static str,
    namespace: Option<String>,
    name: String,
    uid: Option<String>,
    version: Option<String>,
}

/// Translates the objects without those at which `translate` panics, and returns those. `known` are
/// those of the last time. `None`: there are too many of them.
///
/// If `translate` panics only with several objects together, one of these is left out.
pub fn translate_what_fits<T>(
    objects: &Objects,
    known: Vec<Unfit>,
    translate: impl Fn(&Objects) -> T,
) -> (Option<T>, Vec<Unfit>) {
    // A panic can leave values half changed, but no such value outlives the attempt.
    let attempt = |some: &Objects| catch_unwind(AssertUnwindSafe(|| translate(some))).ok();
    let mut unfit = known;
    if !unfit.is_empty() {
        let mut present = Present(Vec::new());
        walk(&mut objects.clone(), &mut present);
        unfit.retain(|object| present.0.contains(object));
    }
    loop {
        let mut some = objects.clone();
        walk(&mut some, &mut Without(&unfit));
        if let Some(done) = attempt(&some) {
            return (Some(done), unfit);
        }
        let found = first_at_fault(&some, |some| attempt(some).is_none());
        match found.filter(|_| unfit.len() < MOST) {
            Some(found) => unfit.push(found),
            None => return (None, unfit),
        }
    }
}

/// The object at which the first panic comes when objects are added one by one, in the order of
/// [`walk`].
fn first_at_fault(objects: &Objects, panics: impl Fn(&Objects) -> bool) -> Option<Unfit> {
    let first = |count| {
        let (mut some, mut first) = (objects.clone(), First { left: count, last: None });
        walk(&mut some, &mut first);
        (some, first.last)
    };
    let mut all = Present(Vec::new());
    walk(&mut objects.clone(), &mut all);
    let (mut good, mut bad) = (0, all.0.len());
    while good + 1 < bad {
        let middle = good.midpoint(bad);
        if panics(&first(middle).0) { bad = middle } else { good = middle }
    }
    first(bad).1
}

impl Unfit {
    fn of<T: Resource>(kind: &'static str, object: &T) -> Self {
        let meta = object.meta();
        Self {
            kind,
            namespace: meta.namespace.clone(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone(),
            version: meta.resource_version.clone(),
        }
    }

    /// Logs the object. Kinds with a status that Ringway writes get an Event too.
    pub fn say(&self) {
        let Self { kind, namespace, name, .. } = self;
        let namespace = namespace.as_deref().unwrap_or_default();
        tracing::error!("{kind} {namespace}/{name} is left out: {WHY}");
    }

    pub fn notice(&self) -> Option<Notice> {
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == self.kind)?;
        Some(Notice {
            kind,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            reason: "LeftOut".into(),
            message: WHY.into(),
            passes: false,
        })
    }
}

const WHY: &str = "its translation panics, which is a fault of Ringway's (the log says where); \
                   Ringway tries again when the object changes";

trait Visit {
    fn visit<T: Resource>(&mut self, kind: &'static str, objects: &mut Vec<Arc<T>>);
}

/// Visits every kind after the kinds that lead to it, so that the last object added is the faulty
/// one.
fn walk(objects: &mut Objects, visit: &mut impl Visit) {
    visit.visit("Namespace", &mut objects.namespaces);
    visit.visit("GatewayClass", &mut objects.gateway_classes);
    visit.visit("Gateway", &mut objects.gateways);
    visit.visit("ListenerSet", &mut objects.listener_sets);
    visit.visit("ReferenceGrant", &mut objects.reference_grants);
    visit.visit("TCPRoute", &mut objects.tcp_routes);
    visit.visit("UDPRoute", &mut objects.udp_routes);
    visit.visit("TLSRoute", &mut objects.tls_routes);
    visit.visit("HTTPRoute", &mut objects.http_routes);
    visit.visit("BackendTLSPolicy", &mut objects.backend_tls_policies);
    visit.visit("L4Policy", &mut objects.policies);
    visit.visit("XBackend", &mut objects.x_backends);
    visit.visit("Service", &mut objects.services);
    visit.visit("EndpointSlice", &mut objects.endpoint_slices);
    visit.visit("Secret", &mut objects.secrets);
    visit.visit("ConfigMap", &mut objects.config_maps);
}

/// Collects all objects.
struct Present(Vec<Unfit>);

impl Visit for Present {
    fn visit<T: Resource>(&mut self, kind: &'static str, objects: &mut Vec<Arc<T>>) {
        self.0.extend(objects.iter().map(|object| Unfit::of(kind, &**object)));
    }
}

/// Takes some objects out.
struct Without<'u>(&'u [Unfit]);

impl Visit for Without<'_> {
    fn visit<T: Resource>(&mut self, kind: &'static str, objects: &mut Vec<Arc<T>>) {
        if !self.0.is_empty() {
            objects.retain(|object| !self.0.contains(&Unfit::of(kind, &**object)));
        }
    }
}

/// Keeps the first `left` objects, and notes the last of them.
struct First {
    left: usize,
    last: Option<Unfit>,
}

impl Visit for First {
    fn visit<T: Resource>(&mut self, kind: &'static str, objects: &mut Vec<Arc<T>>) {
        objects.truncate(self.left);
        self.left -= objects.len();
        if let Some(last) = objects.last() {
            self.last = Some(Unfit::of(kind, &**last));
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Namespace, Service};
    use kube::api::ObjectMeta;

    use super::*;

    fn named<T: Default + Resource>(name: &str, version: &str) -> Arc<T> {
        let mut object = T::default();
        *object.meta_mut() = ObjectMeta {
            name: Some(name.into()),
            resource_version: Some(version.into()),
            ..ObjectMeta::default()
        };
        Arc::new(object)
    }

    fn names(objects: &Objects) -> Vec<String> {
        let mut all = Present(Vec::new());
        walk(&mut objects.clone(), &mut all);
        all.0.into_iter().map(|object| object.name).collect()
    }

    /// Stands for a faulty translation, which panics at some objects.
    fn translate(objects: &Objects) -> Vec<String> {
        let names = names(objects);
        assert!(!names.iter().any(|name| name.contains("bad")), "a fault of ours");
        names
    }

    #[test]
    fn objects_at_which_translation_panics_are_left_out_until_they_change() {
        let mut objects = Objects {
            namespaces: vec![named::<Namespace>("a", "1"), named("b", "1")],
            services: ["c", "bad1", "d", "bad2", "e"].map(|name| named(name, "1")).to_vec(),
            ..Objects::default()
        };
        let (made, unfit) = translate_what_fits(&objects, Vec::new(), translate);
        assert_eq!(made.expect("the rest"), ["a", "b", "c", "d", "e"]);
        let said: Vec<_> = unfit.iter().map(|object| (object.kind, &*object.name)).collect();
        assert_eq!(said, [("Service", "bad1"), ("Service", "bad2")]);
        // The faulty object is known the next time, and is tried again once it has changed.
        objects.services[1] = named::<Service>("good1", "2");
        let (made, unfit) = translate_what_fits(&objects, unfit, translate);
        assert_eq!(made.expect("the rest"), ["a", "b", "c", "good1", "d", "e"]);
        assert_eq!(unfit.len(), 1);
    }

    #[test]
    fn what_panics_at_everything_ends() {
        let services = (0..40).map(|i| named::<Service>(&format!("bad{i}"), "1"));
        let objects = Objects { services: services.collect(), ..Objects::default() };
        assert!(translate_what_fits(&objects, Vec::new(), translate).0.is_none());
        let never = |_: &Objects| -> () { panic!("a fault of ours") };
        assert!(translate_what_fits(&Objects::default(), Vec::new(), never).0.is_none());
    }
}
