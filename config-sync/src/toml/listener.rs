//! The keys of a listener.

use std::time::Duration;

use toml::de::DeValue;

use crate::machine::Machine;
use crate::model::config::MAX_SESSIONS;
use crate::model::listener::{FLOW_TIMEOUT, Listener, OPTIONS, TIMEOUTS};
use crate::model::place::At;
use crate::table::routing::{OnRefusal, OnTruncation, Protocol, Starttls, Timeouts};
use crate::toml::bind::{Binding, bind_address, binding};
use crate::toml::dns_guard::dns_guard;
use crate::toml::fallback::fallbacks;
use crate::toml::limit::{Owner, limit};
use crate::toml::reader::{On, Read, Reader, Section, Table, any, integer, key, or, word};
use crate::toml::socket_options::options;
use crate::toml::source_limit::limit_source;
use crate::toml::values::{duration, duration_from, exact_hostname, hostname, name};
use crate::toml::{admission, proxy, tls};

pub(crate) static LISTENER: Section = Section {
    name: "listeners",
    keys: &[
        any("name"),
        any("protocol"),
        any("address"),
        any("addresses"),
        any("interface"),
        any("freebind"),
        key("mode", On::Stream),
        key("owner", On::Stream),
        key("hostname", On::Tls),
        key("hostnames", On::Tls),
        key("default_hostname", On::Tls),
        key("starttls", On::Tls),
        key("not_tls", On::Tls),
        key("silent", On::Tls),
        key("on_refusal", On::Tls),
        key("tls", On::Tls),
        key("hello_timeout", On::Stream),
        key("idle_timeout", On::Stream),
        key("write_stall_timeout", On::Stream),
        key("half_close_timeout", On::Stream),
        key("max_lifetime", On::Stream),
        key("on_truncation", On::Stream),
        key("flow_timeout", On::Udp),
        key("responses", On::Udp),
        key("dns_guard", On::Udp),
        any("max_sessions"),
        any("limit_source"),
        any("limit"),
        key("nodelay", On::Stream),
        key("keepalive", On::Stream),
        key("user_timeout", On::Stream),
        key("congestion", On::Stream),
        any("accept_proxy"),
        any("allow"),
        any("deny"),
        any("endpoints"),
        any("backends"),
        any("on_unavailable"),
    ],
};

pub(crate) fn listener<'t>(
    reader: &mut Reader<'t>,
    table: &Table<'t>,
    machine: &Machine,
) -> Option<Listener> {
    let name = reader.need(table, "name", "every listener has a name of its own", name);
    let protocol = reader.need(table, "protocol", "\"TCP\", \"UDP\" or \"TLS\"", protocol);
    let form = "IP:PORT, such as \"0.0.0.0:5432\" or \"[::]:5432\"";
    if !table.has("addresses") {
        reader.miss(table, "address", form);
    }
    let addresses = one_or_list(reader, table, ("address", "addresses"), bind_address);
    let asked = protocol.as_ref().map(|protocol| protocol.value);
    let Binding { addresses, interface, freebind, mode, owner } =
        binding(reader, table, addresses, asked);
    if let Some(protocol) = &protocol {
        refuse_keys_of_other_protocols(reader, table, protocol.value);
    }
    let tls = tls::termination(reader, table);
    let accept_proxy = proxy::accept(reader, table);
    let least = Duration::from_millis(100);
    let timeouts = Timeouts {
        hello: or(reader.get(table, "hello_timeout", duration), TIMEOUTS.hello),
        idle: or(reader.get(table, "idle_timeout", duration), TIMEOUTS.idle),
        write_stall: or(reader.get(table, "write_stall_timeout", duration), TIMEOUTS.write_stall),
        half_close: or(reader.get(table, "half_close_timeout", duration), TIMEOUTS.half_close),
        lifetime: or(reader.get(table, "max_lifetime", duration), TIMEOUTS.lifetime),
    };
    let hostnames = one_or_list(reader, table, ("hostname", "hostnames"), hostname);
    let default_hostname = reader.get(table, "default_hostname", exact_hostname);
    let [not_tls, silent] = fallbacks(reader, table, timeouts.hello);
    let starttls = reader.get(table, "starttls", word(&STARTTLS)).map(|given| given.value);
    let on_refusal = or(reader.get(table, "on_refusal", word(&ON_REFUSAL)), OnRefusal::default());
    let on_truncation = reader.get(table, "on_truncation", word(&ON_TRUNCATION));
    let flow_timeout = or(reader.get(table, "flow_timeout", duration_from(least)), FLOW_TIMEOUT);
    let responses = or(reader.get(table, "responses", integer(0..=65_535)), 0);
    let max_sessions = or(reader.get(table, "max_sessions", integer(0..=MAX_SESSIONS)), 0);
    let dns_guard = dns_guard(reader, table);
    let limit_source = limit_source(reader, table, asked);
    let limit = limit(reader, table, Owner::Listener(asked));
    let options = options(reader, table, machine, OPTIONS);
    let admission = admission::admission(reader, table);
    Some(Listener {
        name: name?,
        protocol: protocol?.value,
        addresses,
        interface,
        freebind,
        mode,
        owner,
        hostnames,
        default_hostname,
        starttls,
        not_tls,
        silent,
        on_refusal,
        tls,
        timeouts,
        on_truncation: on_truncation.map_or_else(OnTruncation::default, |given| given.value),
        flow_timeout,
        responses,
        dns_guard,
        max_sessions,
        limit_source,
        limit,
        accept_proxy,
        options,
        admission,
    })
}

/// The value of the first key, or the values of the second key.
fn one_or_list<'t, T>(
    reader: &mut Reader<'t>,
    table: &Table<'t>,
    (one, several): (&str, &str),
    read: impl Fn(&'t DeValue<'t>) -> Read<T>,
) -> Vec<At<T>> {
    if table.has(one) && table.has(several) {
        let message =
            format!("stands beside `{one}`; write all of them here, and leave `{one}` out");
        reader.get(table, several, |_| Err::<(), _>(message));
    }
    let mut values: Vec<_> = reader.get(table, one, &read).into_iter().collect();
    if let Some(listed) = reader.list(table, several, read) {
        if listed.is_empty() {
            reader.get(table, several, |value| match value {
                DeValue::Array(list) if list.is_empty() => Err::<(), _>(format!("names no {one}")),
                _ => Ok(()),
            });
        }
        values.extend(listed);
    }
    values
}

/// The protocol of a listener.
pub(crate) fn protocol(value: &DeValue<'_>) -> Result<Protocol, String> {
    let protocols = [("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("TLS", Protocol::Tls)];
    word(&protocols)(value).map_err(|message| {
        let given = value.as_str().unwrap_or_default().to_ascii_uppercase();
        let hint = match given.as_str() {
            "HTTP" | "WS" | "GRPC" => "HTTP is bytes here: write \"TCP\"",
            "HTTPS" | "SSL" | "SNI" | "WSS" => {
                "write \"TLS\": it passes through by server name, or ends here with \
                 tls = { mode = \"Terminate\", ... }"
            }
            "QUIC" | "HTTP3" | "DTLS" => "it runs on UDP: write \"UDP\"",
            _ => return message,
        };
        format!("{message}; {hint}")
    })
}

/// The words of the file.
pub(crate) const STARTTLS: [(&str, Starttls); 1] = [("postgres", Starttls::Postgres)];
pub(crate) const ON_TRUNCATION: [(&str, OnTruncation); 2] =
    [("reset", OnTruncation::Reset), ("fin", OnTruncation::Fin)];
pub(crate) const ON_REFUSAL: [(&str, OnRefusal); 2] =
    [("tell", OnRefusal::Tell), ("reset", OnRefusal::Reset)];

fn refuse_keys_of_other_protocols<'t>(
    reader: &mut Reader<'t>,
    table: &Table<'t>,
    protocol: Protocol,
) {
    let wrong: Vec<_> = table.given(reader, |on| !on.is_for(protocol)).collect();
    for (on, place) in wrong {
        let whose = match on {
            On::Tls => "TLS listeners",
            On::Udp => "UDP listeners",
            On::Any | On::Stream => "TCP and TLS listeners",
        };
        reader.refuse(&place, format!("is for {whose} only"));
    }
    let waits = protocol != Protocol::Tcp || table.has("accept_proxy");
    if !waits && table.has_own("hello_timeout") {
        let nothing = "is for TLS listeners, and for TCP listeners with accept_proxy; no other \
                       listener waits for a client's first bytes";
        reader.get(table, "hello_timeout", |_| Err::<(), _>(nothing.to_owned()));
    }
}
