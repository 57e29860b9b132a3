//! Ringway's own log, on stderr or at a syslog daemon, and its level, which may change while the
//! process runs.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Duration;

use clap::ValueEnum;
use config_sync::model::config::SYSLOG;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, reload};

use crate::control::events::{Keep, is_kept};
use crate::control::syslog::{OwnLines, Syslog};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    const ALL: [Self; 6] =
        [Self::Off, Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    fn read(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.word() == word)
    }
}

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people: time, level, text.
    Text,
    /// One JSON object a line.
    Json,
    /// For the journal of systemd, which has the time already: `<N>` in front of a line is its
    /// priority, 3 (error) to 7 (debug), as sd-daemon(3) says.
    Journal,
}

impl LogFormat {
    /// The journal's where stderr is the journal. systemd names the device and the inode of that
    /// stream in `JOURNAL_STREAM` (systemd.exec(5)); a child whose stderr is a file inherits the
    /// variable too.
    pub fn of_stderr() -> Self {
        let named = std::env::var("JOURNAL_STREAM").ok();
        let file = nix::sys::stat::fstat(io::stderr()).ok();
        let is =
            |named: String| file.is_some_and(|f| named == format!("{}:{}", f.st_dev, f.st_ino));
        if named.is_some_and(is) { Self::Journal } else { Self::Text }
    }
}

/// Where the log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTo {
    Stderr,
    /// The Unix socket of a syslog daemon.
    Syslog(PathBuf),
}

impl FromStr for LogTo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "stderr" => Ok(Self::Stderr),
            None if text == "syslog" => Ok(Self::Syslog(SYSLOG.into())),
            Some(("syslog", path)) if path.starts_with('/') => Ok(Self::Syslog(path.into())),
            _ => Err(format!("{text:?} is none of stderr, syslog, syslog:/PATH")),
        }
    }
}

/// A line behind its priority, which the journal and syslog read.
struct Journal<F>(F);

impl<S, N, F> FormatEvent<S, N> for Journal<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}

/// A level for everything, and other levels for parts of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Levels {
    all: LogLevel,
    /// Modules of Rust, such as `config_sync::health`.
    parts: Vec<(String, LogLevel)>,
}

impl Levels {
    /// Reads `LEVEL` or `TARGET=LEVEL`, and several of these with commas between them. `otherwise`
    /// is the level for everything, if the text does not give one.
    ///
    /// # Errors
    /// The text is for the operator.
    pub fn read(text: &str, otherwise: LogLevel) -> Result<Self, String> {
        let (mut all, mut parts) = (None, Vec::new());
        for word in text.split(',') {
            let (target, level) = match word.split_once('=') {
                Some((target, level)) => (Some(target), level),
                None => (None, word),
            };
            let level = LogLevel::read(level).ok_or_else(|| {
                let words = LogLevel::ALL.map(LogLevel::word).join(", ");
                format!("level: {level:?} is none of {words}")
            })?;
            match target {
                Some(target) if is_target(target) => parts.push((target.to_owned(), level)),
                Some(target) => {
                    return Err(format!(
                        "level: {target:?} is no part of the program, such as ringway or \
                         config_sync::health"
                    ));
                }
                None if all.replace(level).is_some() => {
                    return Err("level: two levels for everything; leave one out".to_owned());
                }
                None => {}
            }
        }
        Ok(Self { all: all.unwrap_or(otherwise), parts })
    }

    fn filter(&self) -> EnvFilter {
        // These crates log each failure to follow a cluster again and again, without saying where.
        // Ringway gets every error of theirs and logs each cause once.
        let quiet = match self.all {
            LogLevel::Warn | LogLevel::Info => ",kube_client=off,kube_runtime=off",
            LogLevel::Off | LogLevel::Error | LogLevel::Debug | LogLevel::Trace => "",
        };
        let parts = self.parts.iter().map(|(target, level)| format!(",{target}={}", level.word()));
        EnvFilter::new(format!("{}{quiet}{}", self.all.word(), parts.collect::<String>()))
    }
}

fn is_target(text: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.len() <= 100
        && text.split("::").all(|part| !part.is_empty() && part.chars().all(is_letter))
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.all.word())?;
        let mut parts = self.parts.iter();
        parts.try_for_each(|(target, level)| write!(f, ",{target}={}", level.word()))
    }
}

/// The log of this process.
pub struct OwnLog {
    apply: Box<dyn Fn(EnvFilter) -> bool + Send + Sync>,
    state: Mutex<State>,
}

struct State {
    /// The levels that hold until somebody changes them.
    lasting: Levels,
    /// Other levels, and until when they hold.
    passing: Option<(Levels, Instant)>,
}

/// The levels in force.
#[derive(Clone, Debug)]
pub struct InForce {
    pub levels: Levels,
    /// The time left, and the levels after that. `None`: nothing ends.
    pub then: Option<(Duration, Levels)>,
}

static OWN_LOG: OnceLock<OwnLog> = OnceLock::new();

/// The log of this process. `None` before [`start`].
pub fn own_log() -> Option<&'static OwnLog> {
    OWN_LOG.get()
}

/// The most lines that wait to be written, and their bytes if each is long.
const QUEUE: usize = 8_192;
pub const MOST_WAITING: u64 = QUEUE as u64 * 512;

/// Starts Ringway's own log. The log goes through a queue, like the access log: a blocked terminal
/// must not stop a thread that logs.
///
/// # Errors
/// No syslog daemon is there.
pub fn start(level: LogLevel, format: LogFormat, to: &LogTo) -> io::Result<WorkerGuard> {
    let levels = Levels { all: level, parts: Vec::new() };
    let queue = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(QUEUE);
    let (queue, guard) = match to {
        LogTo::Stderr => queue.thread_name("ringway-stderr").finish(io::stderr()),
        LogTo::Syslog(path) => {
            queue.thread_name("ringway-syslog").finish(OwnLines(Syslog::open(path)?))
        }
    };
    let (filter, handle) = reload::Layer::new(levels.filter());
    let plain = tracing_subscriber::fmt::layer().with_target(false).with_writer(queue);
    let log = match format {
        LogFormat::Json if *to != LogTo::Stderr => {
            let json = Format::default().json().flatten_event(true).with_target(false);
            plain.json().event_format(Journal(json)).with_filter(filter).boxed()
        }
        LogFormat::Text if *to == LogTo::Stderr => {
            plain.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).with_filter(filter).boxed()
        }
        LogFormat::Json => plain.json().flatten_event(true).with_filter(filter).boxed(),
        LogFormat::Journal | LogFormat::Text => {
            let text = Format::default().compact().without_time().with_level(false);
            plain
                .with_ansi(false)
                .event_format(Journal(text.with_target(false)))
                .with_filter(filter)
                .boxed()
        }
    };
    tracing_subscriber::registry().with(log).with(Keep.with_filter(filter_fn(is_kept))).init();
    _ = OWN_LOG.set(OwnLog {
        apply: Box::new(move |filter| handle.reload(filter).is_ok()),
        state: Mutex::new(State { lasting: levels, passing: None }),
    });
    Ok(guard)
}

impl OwnLog {
    /// Puts levels in force: for some time, or until the next call. After that time, call
    /// [`Self::expire`].
    ///
    /// # Errors
    /// The text is not understood. The text of the error is for the operator.
    pub fn set(
        &self,
        text: &str,
        lasts: Option<Duration>,
        now: Instant,
    ) -> Result<InForce, String> {
        let mut state = self.state.lock();
        let levels = Levels::read(text, state.lasting.all)?;
        let passing = match lasts {
            Some(lasts) => {
                let until = now.checked_add(lasts).ok_or("for_seconds: too long")?;
                Some((levels.clone(), until))
            }
            None => None,
        };
        let during = lasts.map(|lasts| format!(" for {} s", lasts.as_secs())).unwrap_or_default();
        // Once the level is off, nothing can be said.
        tracing::info!("log level by an operator{during}: {levels}");
        if !(self.apply)(levels.filter()) {
            return Err("the log's level can't be changed".to_owned());
        }
        if passing.is_none() {
            state.lasting = levels;
        }
        state.passing = passing;
        Ok(state.in_force(now))
    }

    /// Goes back to the lasting levels, if the time of the others is over.
    pub fn expire(&self, now: Instant) {
        let mut state = self.state.lock();
        let is_over = |(_, until): &mut (Levels, Instant)| *until <= now;
        if state.passing.take_if(is_over).is_some() && (self.apply)(state.lasting.filter()) {
            tracing::info!("log level: {} again", state.lasting);
        }
    }

    pub fn in_force(&self, now: Instant) -> InForce {
        self.state.lock().in_force(now)
    }
}

impl State {
    fn in_force(&self, now: Instant) -> InForce {
        match &self.passing {
            None => InForce { levels: self.lasting.clone(), then: None },
            Some((levels, until)) => {
                let left = until.saturating_duration_since(now);
                InForce { levels: levels.clone(), then: Some((left, self.lasting.clone())) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_log_goes_to_stderr_or_to_a_syslog_daemon() {
        let syslog = |path: &str| Ok(LogTo::Syslog(path.into()));
        assert_eq!("stderr".parse(), Ok(LogTo::Stderr));
        assert_eq!("syslog".parse::<LogTo>(), syslog("/dev/log"));
        assert_eq!("syslog:/run/log".parse::<LogTo>(), syslog("/run/log"));
        for wrong in ["", "stdout", "syslog:", "syslog:log", "/dev/log"] {
            assert!(wrong.parse::<LogTo>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn levels_are_for_everything_or_for_parts() {
        let read = |text| Levels::read(text, LogLevel::Warn).map(|levels| levels.to_string());
        assert_eq!(read("debug").as_deref(), Ok("debug"));
        assert_eq!(read("ringway=trace").as_deref(), Ok("warn,ringway=trace"));
        let several = "config_sync::health=debug,error,hyper=off";
        assert_eq!(read(several).as_deref(), Ok("error,config_sync::health=debug,hyper=off"));
        for (wrong, said) in [
            ("", "is none of off, error"),
            ("loud", "\"loud\" is none of"),
            ("info,debug", "two levels"),
            ("a=b=info", "is none of"),
            ("a::=info", "no part of the program"),
            ("[span]=info", "no part of the program"),
            ("=info", "no part of the program"),
        ] {
            let fault = read(wrong).expect_err(wrong);
            assert!(fault.contains(said), "{wrong}: {fault}");
        }
    }

    #[test]
    fn a_passing_level_ends_and_the_lasting_one_is_back() {
        let applied = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&applied);
        let log = OwnLog {
            apply: Box::new(move |filter| {
                seen.lock().push(filter.to_string());
                true
            }),
            state: Mutex::new(State {
                lasting: Levels { all: LogLevel::Info, parts: Vec::new() },
                passing: None,
            }),
        };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let level = |seconds| log.in_force(at(seconds)).levels.to_string();
        let for_seconds = |seconds| Some(Duration::from_secs(seconds));
        log.set("error", None, start).expect("a level");
        let set = log.set("ringway=debug", for_seconds(60), start).expect("a level");
        assert_eq!(set.levels.to_string(), "error,ringway=debug");
        let (left, then) = set.then.expect("it ends");
        assert_eq!((left, then.to_string().as_str()), (Duration::from_secs(60), "error"));
        log.expire(at(59));
        assert_eq!(level(59), "error,ringway=debug");
        log.expire(at(60));
        assert_eq!(level(60), "error");
        assert!(log.in_force(at(60)).then.is_none());
        assert!(log.set("loud", None, at(61)).is_err());
        assert_eq!(applied.lock().len(), 3, "a fault changes nothing: {:?}", applied.lock());
        log.set("trace", for_seconds(1), at(62)).expect("a level");
        log.set("warn", None, at(62)).expect("a level");
        log.expire(at(70));
        assert_eq!(level(70), "warn", "the later word counts");
    }
}
