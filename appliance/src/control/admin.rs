//! The admin API: /metrics, /healthz, /readyz, /config and /features.

use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use config_sync::gateway::cluster::Figures;
use config_sync::health;
use config_sync::routing::Limits;
use config_sync::{InForce, Timing};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use libc::{EMFILE, ENFILE};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::metrics::{Scrape, Series};
use crate::proxy::counters::Counters;

/// What the control thread tells the API. Both run on one thread; the locks are for the compiler,
/// and nobody ever waits for one.
pub struct Board {
    workers: Vec<Arc<Counters>>,
    limits: Limits,
    features: String,
    pub ready: AtomicBool,
    pub lines_dropped: AtomicU64,
    pub lines_failed: AtomicU64,
    /// As they were read last: with no file left they can't be.
    source_ports: AtomicU64,
    latest: Mutex<Latest>,
}

/// What follows the configuration.
#[derive(Default)]
pub struct Latest {
    /// `None` before the first table.
    pub in_force: Option<Arc<InForce>>,
    pub series: Series,
    pub reloads_ok: u64,
    pub reloads_failed: u64,
    pub refused: bool,
    pub timing: Timing,
    pub health: health::Figures,
    /// Where a cluster is followed.
    pub kubernetes: Option<Figures>,
}

impl Board {
    /// `limits` are of one worker; `features` as `ringway features` prints them.
    pub fn new(workers: Vec<Arc<Counters>>, limits: Limits, features: String) -> Self {
        Self {
            workers,
            limits,
            features,
            ready: AtomicBool::default(),
            lines_dropped: AtomicU64::default(),
            lines_failed: AtomicU64::default(),
            source_ports: AtomicU64::default(),
            latest: Mutex::default(),
        }
    }

    pub fn latest(&self) -> MutexGuard<'_, Latest> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn workers(&self) -> &[Arc<Counters>] {
        &self.workers
    }

    fn metrics(&self) -> String {
        let latest = self.latest();
        if let Some(ports) = source_ports() {
            self.source_ports.store(ports, Ordering::Relaxed);
        }
        let scrape = Scrape {
            workers: &self.workers,
            limits: self.limits,
            ready: self.ready.load(Ordering::Relaxed),
            reloads_ok: latest.reloads_ok,
            reloads_failed: latest.reloads_failed,
            refused: latest.refused,
            compile_micros: latest.timing.compile_micros,
            publish_micros: latest.timing.publish_micros,
            lines_dropped: self.lines_dropped.load(Ordering::Relaxed),
            lines_failed: self.lines_failed.load(Ordering::Relaxed),
            source_ports: self.source_ports.load(Ordering::Relaxed),
            kubernetes: latest.kubernetes.as_ref(),
            health: &latest.health,
        };
        scrape.render(&latest.series)
    }
}

/// Connections at a time. Those above wait in the kernel's queue.
const PLACES: usize = 128;

/// For a request and its answer, however slow the client.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, board: Arc<Board>) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/config", get(config))
        .route("/features", get(features))
        .with_state(board);
    let (spare, places) = (Arc::new(SpareFiles::default()), Arc::new(Semaphore::new(PLACES)));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("it is never closed");
        spare.fill();
        let stream = accept(&listener, &spare).await;
        let (service, spare) = (TowerToHyperService::new(router.clone()), Arc::clone(&spare));
        tokio::spawn(async move {
            // One request each, so that nobody keeps a file for longer than it takes.
            let mut http = http1::Builder::new();
            let serving = http.keep_alive(false).serve_connection(TokioIo::new(stream), service);
            // What ends a connection is its client's affair.
            let _ = tokio::time::timeout(PATIENCE, serving).await;
            spare.fill();
            drop(place);
        });
    }
}

async fn accept(listener: &TcpListener, spare: &SpareFiles) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) if is_passing(&error) => {}
            Err(error) if out_of_files(&error) && spare.give_up_one() => {
                // The kernel wants a file before it looks whether anybody waits at all: if nobody
                // does, it must not lie open for a session.
                match poll_fn(|context| Poll::Ready(listener.poll_accept(context))).await {
                    Poll::Ready(Ok((stream, _))) => return stream,
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

/// An error that concerns only the connection that accept(2) would have given.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

fn out_of_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}

/// Files that are open for no other purpose than to be closed for a connection to the admin API,
/// when sessions have taken all others that the process may open: whoever wants to know why clients
/// are refused must get an answer then, too.
#[derive(Default)]
struct SpareFiles(Mutex<Vec<File>>);

impl SpareFiles {
    /// As many connections are served however few files there are.
    const COUNT: usize = 16;

    /// Called where a file may just have been closed, so that no session has it first.
    fn fill(&self) {
        let mut files = self.files();
        while files.len() < Self::COUNT
            && let Ok(file) = File::open("/dev/null")
        {
            files.push(file);
        }
    }

    fn give_up_one(&self) -> bool {
        self.files().pop().is_some()
    }

    fn files(&self) -> MutexGuard<'_, Vec<File>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn metrics(State(board): State<Arc<Board>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], board.metrics())
}

async fn ready(State(board): State<Arc<Board>>) -> (StatusCode, &'static str) {
    if board.ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

/// A cluster's is long, and is made here: not on the thread that everything else waits for.
async fn config(State(board): State<Arc<Board>>) -> String {
    let Some(in_force) = board.latest().in_force.clone() else { return String::new() };
    tokio::task::spawn_blocking(move || in_force.text().to_owned()).await.unwrap_or_default()
}

async fn features(State(board): State<Arc<Board>>) -> String {
    board.features.clone()
}

/// How many there are in `net.ipv4.ip_local_port_range`; `None` if that can't be read.
pub fn source_ports() -> Option<u64> {
    size(&std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?)
}

fn size(range: &str) -> Option<u64> {
    let mut bounds = range.split_whitespace().map(str::parse::<u64>);
    let (first, last) = (bounds.next()?.ok()?, bounds.next()?.ok()?);
    Some((last + 1).saturating_sub(first))
}

#[cfg(test)]
mod tests {
    use config_sync::config::parse;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn port_range_counts_both_ends() {
        assert_eq!(size("32768\t60999\n"), Some(28_232));
        assert_eq!(size("x 1"), None);
    }

    #[tokio::test]
    async fn answers_what_the_board_says() {
        let limits =
            Limits { sessions: 1, flows: 1, buffers: 1, pipes: 1, turn_bytes: 1, bulk_bytes: 1 };
        let workers = vec![Arc::new(Counters::new())];
        let board = Arc::new(Board::new(workers, limits, "list\n".into()));
        let text = "lame_duck = \"1s\"\n";
        let config = parse("test.toml", text).expect("a configuration");
        board.latest().in_force = Some(Arc::new(InForce::new(config, text.into())));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let server = tokio::spawn(serve(listener, board.clone()));
        let ask = async |path: &str| {
            let mut stream = TcpStream::connect(address).await.expect("a server");
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.expect("it reads");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("an answer");
            answer
        };
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
        server.abort();
    }
}
