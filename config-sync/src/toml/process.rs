//! The keys of the process: `workers`, `admin`, `access_log`, `limits`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use toml::de::DeValue;

use crate::model::config::{
    ADMIN_ADDRESS, AccessLog, AdminTls, CLOSE_REASONS, Cores, LogFormat, LogTarget, MAX_BUFFERS,
    MAX_SESSIONS, MEMORY_PERCENT, SYSLOG,
};
use crate::model::place::{At, Problem, did_you_mean};
use crate::table::address::UnixPath;
use crate::table::routing::Limits;
use crate::toml::endpoint::MOST_SESSIONS;
use crate::toml::reader::{Read, Reader, Section, Table, any, boolean, integer, or, string, word};
use crate::toml::values::listen_address;

pub(crate) static WORKERS: Section = Section { name: "workers", keys: &[any("cores")] };

pub(crate) static ADMIN: Section = Section {
    name: "admin",
    keys: &[
        any("address"),
        any("socket"),
        any("token_file"),
        any("cert"),
        any("key"),
        any("client_ca"),
        any("overrides_file"),
        any("endpoint_labels"),
    ],
};

pub(crate) static ACCESS_LOG: Section =
    Section { name: "access_log", keys: &[any("path"), any("format"), any("open"), any("sample")] };

pub(crate) static LIMITS: Section = Section {
    name: "limits",
    keys: &[
        any("total_sessions"),
        any("memory_percent"),
        any("memory_readiness"),
        any("readiness_percent"),
        any("sessions"),
        any("flows"),
        any("buffers"),
        any("pipes"),
        any("turn_bytes"),
        any("bulk_bytes"),
    ],
};

/// The name of a user as useradd(8) has them, or a number.
pub(crate) fn user(value: &DeValue<'_>) -> Read<String> {
    let text = string(value)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if text.is_empty() || text.len() > 32 || text.starts_with('-') || !text.chars().all(plain) {
        let message = "must be the name or number of a user, such as \"ringway\"";
        return Err(message.to_owned());
    }
    Ok(text.to_owned())
}

pub(crate) fn cores<'t>(reader: &mut Reader<'t>, root: &Table<'t>) -> Cores {
    let Some(workers) = reader.table(root, "workers", &WORKERS) else { return Cores::Auto };
    let listed = reader.get(&workers, "cores", |value| match value {
        DeValue::String(text) if text == "auto" => Ok(false),
        DeValue::Array(list) if list.is_empty() => Err("names no core; give at least one".into()),
        DeValue::Array(_) => Ok(true),
        _ => Err("must be \"auto\" or a list of core ids, such as [0, 1]".to_owned()),
    });
    if !or(listed, false) {
        return Cores::Auto;
    }
    let list =
        reader.list(&workers, "cores", |value| integer(0..=u16::MAX)(value).map(usize::from));
    let mut cores: Vec<At<usize>> = Vec::new();
    for core in list.unwrap_or_default() {
        if cores.iter().any(|before| before.value == core.value) {
            reader.refuse(&core.place, format!("core {} is named twice", core.value));
        }
        cores.push(core);
    }
    Cores::List(cores)
}

/// Where the admin API listens, and who may change things there.
pub(crate) struct Admin {
    pub(crate) address: Option<SocketAddr>,
    pub(crate) socket: Option<At<UnixPath>>,
    pub(crate) token_file: Option<At<PathBuf>>,
    pub(crate) tls: Option<AdminTls>,
    pub(crate) overrides_file: Option<At<PathBuf>>,
    pub(crate) endpoint_labels: bool,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            address: ADMIN_ADDRESS,
            socket: None,
            token_file: None,
            tls: None,
            overrides_file: None,
            endpoint_labels: true,
        }
    }
}

pub(crate) fn admin<'t>(
    reader: &mut Reader<'t>,
    root: &Table<'t>,
    doubts: &mut Vec<Problem>,
) -> Admin {
    let default = ADMIN_ADDRESS;
    let Some(admin) = reader.table(root, "admin", &ADMIN) else { return Admin::default() };
    let address = reader.get(&admin, "address", |value| match value {
        DeValue::String(text) if text.is_empty() => Ok(None),
        value => listen_address(value).map(Some),
    });
    if let Some(At { value: Some(open), place }) = &address
        && is_public(open.ip())
    {
        let (ip, port) = (open.ip(), open.port());
        let reached = if ip.is_unspecified() { "on every address" } else { "from the Internet" };
        doubts.push(place.problem(format!(
            "{ip} can be reached {reached}, and the admin API asks nobody who they are; write \
             \"127.0.0.1:{port}\" or a private address, or have a firewall in front"
        )));
    }
    let address = or(address, default);
    let socket = reader.get(&admin, "socket", |value| match string(value)? {
        "" => Ok(None),
        path if path.starts_with('/') => UnixPath::new(path).map(Some),
        _ => Err("must be an absolute path, such as \"/run/ringway/admin.sock\"".to_owned()),
    });
    let mut file = |key| {
        let file = reader.get(&admin, key, |value| match string(value)? {
            "" => Err("names no file".to_owned()),
            _ if address.is_none() => Err("is for admin.address, which is off".to_owned()),
            path => Ok(path),
        });
        file.map(|At { value, place }| At { value: place.path(value), place })
    };
    let token_file = file("token_file");
    let [cert, key, client_ca] = ["cert", "key", "client_ca"].map(&mut file);
    let tls = tls(reader, cert, key, client_ca);
    let overrides_file = reader.get(&admin, "overrides_file", |value| match string(value)? {
        "" => Err("names no file".to_owned()),
        path => Ok(path),
    });
    let overrides_file =
        overrides_file.map(|At { value, place }| At { value: place.path(value), place });
    let endpoint_labels = or(reader.get(&admin, "endpoint_labels", boolean), true);
    let socket = socket.and_then(|At { value, place }| Some(At { value: value?, place }));
    Admin { address, socket, token_file, tls, overrides_file, endpoint_labels }
}

/// Certificate and key belong together, and nothing else is of use without them.
fn tls(
    reader: &mut Reader<'_>,
    cert: Option<At<PathBuf>>,
    key: Option<At<PathBuf>>,
    client_ca: Option<At<PathBuf>>,
) -> Option<AdminTls> {
    match (cert, key, client_ca) {
        (Some(cert), Some(key), client_ca) => Some(AdminTls { cert, key, client_ca }),
        (None, None, None) => None,
        (cert, key, client_ca) => {
            let missing = if cert.is_none() { "admin.cert" } else { "admin.key" };
            if let Some(given) = cert.or(key).or(client_ca) {
                reader.refuse(&given.place, format!("needs {missing} beside it"));
            }
            None
        }
    }
}

/// Whether the address is the wildcard address, or an address that the Internet routes (RFC 6890).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64;
            !(v4.is_private() || v4.is_loopback() || v4.is_link_local() || shared)
        }
        IpAddr::V6(v6) => !(v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local()),
    }
}

pub(crate) fn access_log<'t>(reader: &mut Reader<'t>, root: &Table<'t>) -> AccessLog {
    let mut log = AccessLog {
        target: LogTarget::Stdout,
        format: LogFormat::Json,
        open: false,
        sample: BTreeMap::new(),
    };
    if let Some(table) = &reader.table(root, "access_log", &ACCESS_LOG) {
        let target = reader.get(table, "path", |value| {
            Ok(match string(value)? {
                "off" => LogTarget::Off,
                "stdout" => LogTarget::Stdout,
                "stderr" => LogTarget::Stderr,
                "syslog" => LogTarget::Syslog(SYSLOG.into()),
                path if path.starts_with("syslog:") => match &path["syslog:".len()..] {
                    path if path.starts_with('/') => LogTarget::Syslog(path.into()),
                    _ => return Err("must have an absolute path behind \"syslog:\"".to_owned()),
                },
                path => LogTarget::File(path.into()),
            })
        });
        let formats = [("json", LogFormat::Json), ("text", LogFormat::Text)];
        log.target = or(target, log.target);
        log.format = or(reader.get(table, "format", word(&formats)), log.format);
        log.open = or(reader.get(table, "open", boolean), log.open);
        log.sample = or(reader.get(table, "sample", sample), log.sample);
    }
    log
}

/// How many lines of a reason one stands for.
fn sample(value: &DeValue<'_>) -> Result<BTreeMap<&'static str, u32>, String> {
    let DeValue::Table(table) = value else {
        return Err("must be a table, such as { client_fin = 100 }".to_owned());
    };
    let mut sample = BTreeMap::new();
    for (key, value) in table {
        let word: &str = key.get_ref();
        let Some(reason) = CLOSE_REASONS.iter().find(|reason| **reason == word) else {
            let near = did_you_mean(word, CLOSE_REASONS.iter().copied());
            return Err(format!("{word:?} is no close reason{near}"));
        };
        let number = integer(0..=1_000_000)(value.get_ref());
        sample.insert(*reason, number.map_err(|fault| format!("{word} {fault}"))?);
    }
    Ok(sample)
}

/// What `limits` says.
pub(crate) struct AskedLimits {
    /// Of each worker.
    pub(crate) limits: Limits,
    pub(crate) total_sessions: u32,
    pub(crate) memory_percent: u8,
    pub(crate) memory_readiness: bool,
    pub(crate) readiness_percent: u8,
}

pub(crate) fn asked_limits<'t>(reader: &mut Reader<'t>, root: &Table<'t>) -> AskedLimits {
    let (mut asked, mut total) = (Limits::default(), 0);
    let (mut percent, mut readiness, mut readiness_percent) = (MEMORY_PERCENT, false, 0);
    if let Some(table) = &reader.table(root, "limits", &LIMITS) {
        asked.sessions = or(reader.get(table, "sessions", integer(0..=MAX_SESSIONS)), 0);
        asked.flows = or(reader.get(table, "flows", integer(0..=MAX_SESSIONS)), 0);
        asked.buffers = or(reader.get(table, "buffers", integer(0..=MAX_BUFFERS)), 0);
        asked.pipes = or(reader.get(table, "pipes", integer(0..=65_536)), 0);
        asked.turn_bytes = or(reader.get(table, "turn_bytes", integer(0..=1 << 30)), 0);
        asked.bulk_bytes = or(reader.get(table, "bulk_bytes", integer(0..=u32::MAX)), 0);
        total = or(reader.get(table, "total_sessions", integer(0..=MOST_SESSIONS)), 0);
        percent = or(reader.get(table, "memory_percent", integer(0..=100)), MEMORY_PERCENT);
        readiness = or(reader.get(table, "memory_readiness", boolean), false);
        readiness_percent = or(reader.get(table, "readiness_percent", integer(0..=100)), 0);
    }
    AskedLimits {
        limits: asked,
        total_sessions: total,
        memory_percent: percent,
        memory_readiness: readiness,
        readiness_percent,
    }
}
