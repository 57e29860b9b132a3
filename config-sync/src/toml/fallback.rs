//! The keys of a TLS listener for clients that send no ClientHello, and the routes that follow from
//! these keys.

use crate::model::listener::Listener;
use crate::model::place::At;
use crate::model::route::{Route, Takes, WeightedBackend};
use crate::toml::reader::{Reader, Table};
use crate::toml::route::name_of;

/// The backends of clients that do not speak TLS, and of clients that are silent.
pub(crate) fn fallbacks<'t>(
    reader: &mut Reader<'t>,
    table: &Table<'t>,
    hello_timeout: u32,
) -> [Option<At<String>>; 2] {
    let not_tls = reader.get(table, "not_tls", name_of);
    let silent = reader.get(table, "silent", name_of);
    if let Some(silent) = silent.as_ref().filter(|_| hello_timeout == 0) {
        let message = "needs `hello_timeout`, which is off here: a client counts as silent after \
                       `hello_timeout`";
        reader.refuse(&silent.place, message);
    }
    [not_tls, silent]
}

/// The routes to these backends. A route's name is the listener's name, a slash, and the key.
pub(crate) fn routes(listener: &Listener) -> impl Iterator<Item = Route> {
    let Listener { name, not_tls, silent, .. } = listener;
    let fallbacks = [(Takes::NotTls, not_tls, "not_tls"), (Takes::Silent, silent, "silent")];
    fallbacks.into_iter().filter_map(|(takes, backend, key)| {
        let backend = backend.as_ref()?;
        let place = backend.place.clone();
        let own = At { value: format!("{}/{key}", name.value), place };
        let backends = vec![WeightedBackend { name: backend.clone(), weight: 1 }];
        Some(Route { takes, ..Route::of_listener(own, name.clone(), backends) })
    })
}
