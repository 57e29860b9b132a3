//! Makes a line of the access log out of a worker's record.

use std::borrow::Cow;

use config_sync::compile::names::Names;
use nix::errno::Errno;

use crate::control::id::{Id, Run};
use crate::control::log_line::Line;
use crate::control::shown::{Shown, protocol};
use crate::control::timestamp::WallClock;
use crate::control::tls_fields::TlsFields;
use crate::stats::detail::Detail;
use crate::stats::records::SessionRecord;

pub fn line<'a>(
    event: &'static str,
    worker: usize,
    session: &'a SessionRecord,
    names: &'a Names,
    (wall, run): (WallClock, Run),
) -> Line<'a> {
    let opening = event == "open";
    Line {
        time: wall.at(if opening { session.opened } else { session.closed }),
        event,
        id: session.handle.map(|handle| Id { worker, handle, run }),
        protocol: protocol(session.protocol),
        listener: session.listener.and_then(|id| names.listener(id)),
        client: session.client.into(),
        peer: session.peer.map(Shown::from),
        local: match Shown::from(session.local) {
            Shown::Unix(_) => Shown::Unix(names.socket(session.socket).map(|at| &at.address)),
            local => local,
        },
        server_name: session.server_name.as_deref(),
        tls: session.tls.as_deref().map(TlsFields::of),
        route: session.route.and_then(|id| names.route(id)),
        backend: session.backend.and_then(|id| names.backend(id)),
        endpoint: session
            .endpoint
            .and_then(|id| names.endpoint(id))
            .map(|(_, address)| Shown::Endpoint(address)),
        endpoint_name: session.endpoint.and_then(|id| names.endpoint_name(id)),
        bytes_up: session.bytes_up,
        bytes_down: session.bytes_down,
        duration_ms: millis(session.closed.saturating_sub(session.opened)),
        connect_ms: session.connect.map(|micros| millis(micros.into())),
        unique_id: session.unique_id.map(|id| format!("{id:032x}")),
        reason: session.reason.map(|reason| reason.word()),
        detail: session.detail.as_ref().map(said),
        worker,
        suppressed: session.suppressed,
        sampled: None,
    }
}

/// The name of an errno, or the detail's own text.
fn said(detail: &Detail) -> Cow<'_, str> {
    match detail {
        Detail::Said(text) => Cow::Borrowed(text),
        Detail::Errno(errno) => match Errno::from_raw(*errno) {
            Errno::UnknownErrno => Cow::Owned(format!("errno {errno}")),
            name => Cow::Owned(format!("{name:?}")),
        },
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact for 285 years of microseconds")]
fn millis(micros: u64) -> f64 {
    micros as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use config_sync::table::routing::{ListenerId, Protocol, SocketId};

    use super::*;
    use crate::stats::records::CloseReason;

    #[test]
    fn line_is_stamped_with_the_time_of_its_event() {
        let names = Names::new();
        let wall = WallClock::new(SystemTime::UNIX_EPOCH, 0);
        let session = session();
        let open = line("open", 0, &session, &names, (wall, Run(1)));
        let close = line("close", 0, &session, &names, (wall, Run(1)));
        assert_eq!(open.time, wall.at(1_000));
        assert_eq!(close.time, wall.at(3_500));
        assert!((close.duration_ms - 2.5).abs() < f64::EPSILON);
        assert_eq!(close.reason, Some("connect_failed"));
        assert_eq!(close.listener, None, "a name that nobody knows is left out");
    }

    fn session() -> SessionRecord {
        let address = "127.0.0.1:1".parse().expect("an address");
        SessionRecord {
            listener: Some(ListenerId(9)),
            reason: Some(CloseReason::ConnectFailed),
            ..SessionRecord::new(Protocol::Tcp, SocketId(0), (address, address), 1_000, 3_500)
        }
    }
}
