//! Checks where clients without a ClientHello go. Nothing tells them apart but the address that
//! they came to.

use crate::check::OnAddress;
use crate::model::listener::Listener;
use crate::model::place::{At, Problem};

/// Listeners that share an address must not differ in their backends for such clients.
pub(super) fn agreed(sharing: &[OnAddress<'_>]) -> Vec<Problem> {
    let mut found = Vec::new();
    for key in ["not_tls", "silent"] {
        let mut given = sharing.iter().filter_map(|OnAddress { listener, .. }| {
            let Listener { not_tls, silent, .. } = listener;
            let backend = if key == "silent" { silent } else { not_tls };
            backend.as_ref().map(|backend| (*listener, backend))
        });
        let Some((first, expected)) = given.next() else { continue };
        for (_, backend) in given.filter(|(_, backend)| backend.value != expected.value) {
            found.push(backend.problem(format!(
                "listener \"{}\" ({}) has the same address and `{key} = \"{}\"`: without a \
                 server name nothing tells the two listeners apart, so both must name one backend",
                first.name.value,
                expected.place.seen_from(&backend.place),
                expected.value
            )));
        }
    }
    found
}

/// The listener and its key, if one of two routes with the same name follows from such a key.
pub(super) fn listener<'n>(
    one: &'n At<String>,
    other: &'n At<String>,
) -> Option<(&'n str, &'n str)> {
    let mut fields = [one, other].into_iter().map(|name| &name.place.field);
    fields.find(|field| field.ends_with(".not_tls") || field.ends_with(".silent"))?;
    one.value.rsplit_once('/')
}
