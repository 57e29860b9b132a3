//! The admin API: /metrics, /healthz, /readyz, /config and /features, and /api/v1.
//!
//! The API has a thread of its own. The control thread may be busy for seconds with a large
//! configuration, and a probe that gets no answer for one second gets the gateway killed. A client
//! that only holds connections open can't keep a probe out either: the oldest such connection is
//! closed.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::get;
use config_sync::table::address::UNIX;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use libc::{EMFILE, ENFILE};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use crate::control::admin::access::Access;
use crate::control::admin::api::{self, Api, MOST_BODY, stream};
use crate::control::admin::board::{Board, MetricsPage};
use crate::control::admin::calls::Caller;
use crate::control::admin::request_rate::{Peer, RequestRate, limit};
use crate::control::admin::tls::Tls;
use crate::control::admin::viewers::Seat;
use crate::control::metrics::open_metrics;
use crate::control::page;
use crate::control::spare_files::SpareFiles;

/// The most connections at a time. For one more, the oldest is closed.
const PLACES: usize = 128;

/// The most connections that have asked and do not read their answer to its end. Each holds a page.
const ANSWERS: usize = 16;

/// hyper reads at most so much at once, and no more of a head that is this long and not whole. So a
/// head has at most twice as many bytes.
const BUFFER: usize = 32 << 10;

/// What all connections together may have of requests, in bytes.
pub const MOST_READ: u64 = 2 * (PLACES * BUFFER) as u64;

/// The time for the head of a request. Probes and scrapers send the head at once.
const HEAD_PATIENCE: Duration = Duration::from_secs(5);

/// The time for a request and its answer, however slow the client is.
const PATIENCE: Duration = Duration::from_secs(30);

/// A control thread that has not beaten for this long will not recover, and neither will a worker
/// that has made no turn, so /healthz fails. No configuration takes that long.
const SILENCE: Duration = Duration::from_secs(60);

/// A listening socket of the API.
pub enum Door {
    /// Without TLS, clients speak plain HTTP.
    Tcp(std::net::TcpListener, Access, Option<Tls>),
    /// Every client may change things.
    Unix(std::os::unix::net::UnixListener),
}

impl Door {
    /// The socket for another process, and its address as the configuration writes it.
    ///
    /// # Errors
    /// No file is left.
    pub fn shared(&self) -> io::Result<(String, Arc<OwnedFd>)> {
        let (address, socket) = match self {
            Self::Tcp(listener, ..) => {
                (listener.local_addr()?.to_string(), OwnedFd::from(listener.try_clone()?))
            }
            Self::Unix(listener) => {
                let address = listener.local_addr()?;
                let path = address.as_pathname().map(|path| path.display().to_string());
                let name = || {
                    let name = address.as_abstract_name().unwrap_or_default();
                    format!("@{}", String::from_utf8_lossy(name))
                };
                let address = format!("{UNIX}{}", path.unwrap_or_else(name));
                (address, OwnedFd::from(listener.try_clone()?))
            }
        };
        Ok((address, Arc::new(socket)))
    }
}

/// Ends the accepting. Without this, the API serves until the process ends.
pub struct Closing(watch::Sender<bool>);

impl Closing {
    pub fn close(self) {
        // The API's thread may have died.
        _ = self.0.send(true);
    }
}

/// Serves on a thread of its own until the process ends. `spare`: files that are kept for it
/// already.
///
/// # Errors
/// The system refuses the thread or the resources of its event loop.
pub fn start(
    doors: Vec<Door>,
    board: Arc<Board>,
    caller: Caller,
    spare: Option<SpareFiles>,
) -> io::Result<Closing> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    // Pages are made one at a time. The second thread is for the page of a client that has gone.
    let runtime = runtime.enable_all().max_blocking_threads(2).build()?;
    let spare = Arc::new(spare.unwrap_or_else(|| SpareFiles::new(SPARE)));
    let rate = Arc::<RequestRate>::default();
    let reads = Access::Token { file: None, certificates: false };
    let api = Api { board: Arc::clone(&board), caller: caller.clone(), access: reads };
    runtime.spawn(stream::make(api));
    let (closing, closed) = watch::channel(false);
    for door in doors {
        let (listener, access) = {
            let _inside = runtime.enter();
            match door {
                Door::Tcp(listener, access, tls) => {
                    (Listener::Tcp(TcpListener::from_std(listener)?, tls), access)
                }
                Door::Unix(listener) => {
                    (Listener::Unix(UnixListener::from_std(listener)?), Access::All)
                }
            }
        };
        if let Listener::Tcp(_, Some(tls)) = &listener {
            runtime.spawn(tls.clone().follow());
        }
        let api = Api { board: Arc::clone(&board), caller: caller.clone(), access };
        // Each socket has places of its own, so no client of an address keeps a client of the Unix
        // socket out.
        let mut closed = closed.clone();
        let serving = serve(listener, api, Arc::clone(&spare), Arc::clone(&rate));
        runtime.spawn(async move {
            tokio::select! {
                () = serving => {}
                // An answer that is under way is a task of its own.
                Ok(_) = closed.wait_for(|closed| *closed) => {}
            }
        });
    }
    thread::Builder::new()
        .name("ringway-admin".into())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    Ok(Closing(closing))
}

enum Listener {
    Tcp(TcpListener, Option<Tls>),
    Unix(UnixListener),
}

enum Stream {
    Tcp(TcpStream, Option<TlsAcceptor>),
    Unix(UnixStream),
}

impl Stream {
    fn peer(&self) -> Peer {
        Peer(match self {
            // A client that has gone already gets no answer.
            Self::Tcp(stream, _) => stream.peer_addr().ok().map(|peer| peer.ip()),
            Self::Unix(_) => None,
        })
    }
}

impl Listener {
    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        match self {
            Self::Tcp(listener, tls) => listener
                .poll_accept(context)
                .map_ok(|(stream, _)| Stream::Tcp(stream, tls.as_ref().map(Tls::acceptor))),
            Self::Unix(listener) => {
                listener.poll_accept(context).map_ok(|(stream, _)| Stream::Unix(stream))
            }
        }
    }
}

/// This many connections are served even if no files are left. An operator who asks why clients are
/// refused must get an answer then, too.
pub const SPARE: usize = 16;

async fn serve(listener: Listener, api: Api, spare: Arc<SpareFiles>, rate: Arc<RequestRate>) {
    let routers = Routers {
        trusted: router(Api { access: Access::Certificate, ..api.clone() }, Arc::clone(&rate)),
        others: router(api, rate),
    };
    let mut connections = Connections::default();
    loop {
        spare.fill();
        let stream = accept(&listener, &spare, &mut connections).await;
        connections.make_room();
        connections.serve(stream, &routers, &spare);
    }
}

/// What a connection is served with.
struct Routers {
    /// The client has a certificate that `admin.client_ca` has signed.
    trusted: Router,
    others: Router,
}

fn router(api: Api, rate: Arc<RequestRate>) -> Router {
    let board = Arc::clone(&api.board);
    let routes = api::routes().layer(DefaultBodyLimit::max(MOST_BODY));
    let limited = Router::new()
        .route("/config", get(config))
        .with_state(Arc::clone(&board))
        .merge(routes.with_state(api))
        .layer(from_fn_with_state((rate, Arc::clone(&board)), limit));
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .route("/features", get(features))
        .with_state(board)
        .merge(page::routes())
        .merge(limited)
}

/// The open connections, the oldest first.
#[derive(Default)]
struct Connections(VecDeque<Connection>);

struct Connection {
    serving: JoinHandle<()>,
    /// The head of the request has arrived.
    asked: Arc<AtomicBool>,
    seat: Seat,
}

impl Connections {
    fn serve(&mut self, stream: Stream, routers: &Routers, spare: &Arc<SpareFiles>) {
        let (asked, seat) = (Arc::new(AtomicBool::default()), Seat::default());
        let spare = Arc::clone(spare);
        let peer = stream.peer();
        let client = Client { asked: Arc::clone(&asked), seat: seat.clone(), peer };
        let [trusted, others] = [&routers.trusted, &routers.others].map(Router::clone);
        let serving = tokio::spawn(async move {
            match stream {
                Stream::Unix(stream) => client.serve_on(stream, others).await,
                Stream::Tcp(stream, None) => client.serve_on(stream, others).await,
                Stream::Tcp(stream, Some(acceptor)) => {
                    // A client that stalls in the handshake has not asked, so it makes room for
                    // others as those do that stall in the head of their request.
                    let shaken = timeout(HEAD_PATIENCE, acceptor.accept(stream)).await;
                    if let Ok(Ok(stream)) = shaken {
                        let has_certificate = stream.get_ref().1.peer_certificates().is_some();
                        let router = if has_certificate { trusted } else { others };
                        client.serve_on(stream, router).await;
                    }
                }
            }
            spare.fill();
        });
        self.0.push_back(Connection { serving, asked, seat });
    }

    /// Closes a connection if there are too many. Connections that have not asked go first, because
    /// a client that waits for an answer needs its connection.
    fn make_room(&mut self) {
        self.0.retain(|connection| !connection.serving.is_finished());
        if self.0.iter().filter(|connection| connection.has_asked()).count() > ANSWERS
            && let Some(oldest) = self.0.iter().position(Connection::has_asked)
            && let Some(connection) = self.0.remove(oldest)
        {
            connection.serving.abort();
        }
        if self.0.len() >= PLACES
            && let Some(connection) = self.take_oldest()
        {
            connection.serving.abort();
        }
    }

    /// Frees a file: ends the oldest connection, and waits until its file is closed.
    async fn end_oldest(&mut self) -> bool {
        let Some(connection) = self.take_oldest() else { return false };
        connection.serving.abort();
        // The connection was told to end, so its result does not matter.
        let _ = connection.serving.await;
        true
    }

    fn take_oldest(&mut self) -> Option<Connection> {
        let idle = |connection: &Connection| !connection.asked.load(Ordering::Relaxed);
        let oldest = self.0.iter().position(idle).unwrap_or(0);
        self.0.remove(oldest)
    }
}

impl Connection {
    /// Waits for an answer that ends. A viewer's answer does not; viewers have places of their own.
    fn has_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed) && !self.seat.is_taken()
    }
}

/// A client, from the first byte of its request on.
struct Client {
    asked: Arc<AtomicBool>,
    seat: Seat,
    peer: Peer,
}

impl Client {
    async fn serve_on(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        router: Router,
    ) {
        let service = TowerToHyperService::new(router);
        let service = service_fn(|mut request| {
            self.asked.store(true, Ordering::Relaxed);
            request.extensions_mut().insert(self.seat.clone());
            request.extensions_mut().insert(self.peer);
            service.call(request)
        });
        // Each connection takes one request, so that no client keeps a file for longer than needed.
        let mut http = http1::Builder::new();
        http.keep_alive(false).max_buf_size(BUFFER);
        http.timer(TokioTimer::new()).header_read_timeout(HEAD_PATIENCE);
        let serving = http.serve_connection(TokioIo::new(stream), service);
        // Errors of a connection concern only its client.
        tokio::select! {
            _ = serving => {}
            () = patience(&self.seat) => {}
        }
    }
}

/// Ends when a connection has had its time. A viewer has all the time, while it reads.
async fn patience(viewer: &Seat) {
    tokio::time::sleep(PATIENCE).await;
    while viewer.is_taken() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn accept(listener: &Listener, spare: &SpareFiles, connections: &mut Connections) -> Stream {
    loop {
        match poll_fn(|context| listener.poll_accept(context)).await {
            Ok(stream) => return stream,
            Err(error) if is_passing(&error) => {}
            Err(error)
                if out_of_files(&error) && (spare.give_up(1) || connections.end_oldest().await) =>
            {
                // The kernel needs a file before the kernel checks whether any client waits. If no
                // client waits, the file must not be free for a session.
                match poll_fn(|context| Poll::Ready(listener.poll_accept(context))).await {
                    Poll::Ready(Ok(stream)) => return stream,
                    Poll::Ready(Err(_)) | Poll::Pending => spare.fill(),
                }
            }
            Err(error) => {
                tracing::error!("admin API: accepting: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Whether an error concerns only the connection that accept(2) would have given.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

fn out_of_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}

/// The page is made on another thread, because a page of 10,000 endpoints takes a moment. Pages are
/// made one at a time. A request that came before a page was begun gets that page, so frequent
/// requests cost other clients nothing.
async fn metrics(State(board): State<Arc<Board>>, headers: HeaderMap) -> impl IntoResponse {
    let asked = Instant::now();
    let mut page = board.page.lock().await;
    let text = match &*page {
        Some(page) if page.begun >= asked => page.text.clone(),
        _ => {
            let (begun, maker) = (Instant::now(), Arc::clone(&board));
            let made = tokio::task::spawn_blocking(move || maker.metrics()).await;
            let Ok(text) = made.map(Bytes::from) else {
                return (StatusCode::INTERNAL_SERVER_ERROR, "the page can't be made\n")
                    .into_response();
            };
            *page = Some(MetricsPage { begun, text: text.clone() });
            text
        }
    };
    drop(page);
    if !open_metrics::is_preferred(&headers) {
        return ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
            .into_response();
    }
    let open = open_metrics::from_text(&String::from_utf8_lossy(&text));
    ([(CONTENT_TYPE, open_metrics::OPEN_METRICS)], open).into_response()
}

async fn health(State(board): State<Arc<Board>>) -> (StatusCode, String) {
    let (silence, hang) = (board.silence(), *board.hang.lock());
    if silence >= SILENCE {
        let seconds = silence.as_secs();
        let text = format!("the control thread has not moved for {seconds} s\n");
        return (StatusCode::SERVICE_UNAVAILABLE, text);
    }
    match hang.filter(|hang| hang.lasts >= SILENCE) {
        Some(hang) => (StatusCode::SERVICE_UNAVAILABLE, format!("{hang}\n")),
        None => (StatusCode::OK, "ok\n".to_owned()),
    }
}

async fn ready(State(board): State<Arc<Board>>) -> (StatusCode, String) {
    let hang = *board.hang.lock();
    match hang {
        Some(hang) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {hang}\n")),
        None if board.is_ready() => (StatusCode::OK, "ready\n".to_owned()),
        None => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n".to_owned()),
    }
}

/// A cluster's text is long, and is made here, not on the control thread, for which all else waits.
async fn config(State(board): State<Arc<Board>>) -> String {
    let Some(in_force) = board.latest().in_force.clone() else { return String::new() };
    tokio::task::spawn_blocking(move || in_force.text().to_owned()).await.unwrap_or_default()
}

async fn features(State(board): State<Arc<Board>>) -> String {
    board.features.clone()
}

#[cfg(test)]
mod tests {
    use config_sync::check::parse;
    use config_sync::sync::InForce;
    use config_sync::table::routing::Limits;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use crate::control::admin::calls::channel;
    use crate::control::pulse::Hang;
    use crate::stats::counters::Counters;

    use super::*;

    fn board() -> Arc<Board> {
        let limits =
            Limits { sessions: 1, flows: 1, buffers: 1, pipes: 1, turn_bytes: 1, bulk_bytes: 1 };
        let workers = vec![Arc::new(Counters::new())];
        Arc::new(Board::new(workers, (limits, limits), "list\n".into()))
    }

    #[tokio::test]
    async fn a_worker_that_hangs_fails_the_probes() {
        let board = board();
        board.ready.store(true, Ordering::Relaxed);
        let hangs = |seconds| Some(Hang { worker: 3, lasts: Duration::from_secs(seconds) });
        for (hang, is_ready, is_healthy) in
            [(None, true, true), (hangs(8), false, true), (hangs(60), false, false)]
        {
            *board.hang.lock() = hang;
            assert_eq!(board.is_ready(), is_ready);
            let (status, text) = ready(State(board.clone())).await;
            assert_eq!(status == StatusCode::OK, is_ready, "{text}");
            assert_eq!(text.contains("worker 3 has made no turn for "), !is_ready, "{text}");
            let (status, text) = health(State(board.clone())).await;
            assert_eq!(status == StatusCode::OK, is_healthy, "{text}");
        }
    }

    #[tokio::test]
    async fn answers_what_the_board_says() {
        let board = board();
        let text = "lame_duck = \"1s\"\n";
        let config = parse("test.toml", text).expect("a configuration");
        board.latest().in_force = Some(Arc::new(InForce::new(config, text.into())));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let api = Api {
            board: board.clone(),
            caller: channel().0,
            access: Access::with_token(None, false).expect("no file"),
        };
        let spare = Arc::new(SpareFiles::new(0));
        let serving = serve(Listener::Tcp(listener, None), api, spare, Arc::default());
        let server = tokio::spawn(serving);
        let method = async |method: &str, path: &str| {
            let path = format!("{method} {path}");
            let mut stream = TcpStream::connect(address).await.expect("a server");
            let request = format!("{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.expect("it reads");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("an answer");
            answer
        };
        let ask = async |path: &str| method("GET", path).await;
        assert!(ask("/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(ask("/readyz").await.starts_with("HTTP/1.1 503"));
        board.ready.store(true, Ordering::Relaxed);
        assert!(ask("/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(ask("/config").await.ends_with("lame_duck = \"1s\"\n"));
        assert!(ask("/features").await.ends_with("list\n"));
        let metrics = ask("/metrics").await;
        assert!(metrics.contains("content-type: text/plain; version=0.0.4"), "{metrics}");
        assert!(metrics.contains("ringway_ready 1"), "{metrics}");
        assert!(ask("/nothing").await.starts_with("HTTP/1.1 404"));
        assert!(ask("/api/v1/nothing").await.starts_with("HTTP/1.1 404"));
        for wrong in ["color=1", "client=x", "limit=0", "limit=9999", "cursor=1.0", "limit=x"] {
            let answer = ask(&format!("/api/v1/sessions?{wrong}")).await;
            let key = wrong.split('=').next().expect("a key");
            let says = answer.contains(key) || wrong == "client=x" && answer.contains("prefix");
            assert!(answer.starts_with("HTTP/1.1 400") && says, "{answer}");
        }
        let read_only = method("DELETE", "/api/v1/sessions?listener=a").await;
        assert!(read_only.starts_with("HTTP/1.1 403"), "{read_only}");
        assert!(read_only.contains("admin.socket"), "{read_only}");
        let busy = ask("/api/v1/flows").await;
        assert!(busy.starts_with("HTTP/1.1 503"), "nobody answers the calls: {busy}");
        let mut refused = String::new();
        for _ in 0..10_000 {
            refused = ask("/api/v1/nothing").await;
            if refused.starts_with("HTTP/1.1 429") {
                break;
            }
        }
        assert!(refused.contains("retry-after: 1") && refused.contains("100 per second"));
        for unlimited in ["/healthz", "/readyz", "/metrics", "/features", "/"] {
            assert!(ask(unlimited).await.starts_with("HTTP/1.1 200"), "{unlimited}");
        }
        let metrics = ask("/metrics").await;
        assert!(metrics.contains("ringway_admin_requests_refused_total 1"), "{metrics}");
        server.abort();
    }
}
