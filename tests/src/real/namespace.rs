//! Network namespaces.

use std::sync::mpsc::{Sender, channel};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

use crate::real::program;

/// A network namespace with a thread in it that does what it is asked to.
pub struct Namespace {
    /// By which programs know the namespace.
    tid: String,
    work: Sender<Box<dyn FnOnce() + Send>>,
}

impl Namespace {
    #[expect(clippy::new_without_default, reason = "it starts a thread")]
    pub fn new() -> Self {
        let (work, asked) = channel::<Box<dyn FnOnce() + Send>>();
        let (ready, is_ready) = channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (needs root)");
            program("ip", &["link", "set", "lo", "up"]);
            ready.send(gettid().to_string()).expect("the test waits");
            asked.iter().for_each(|job| job());
        });
        Self { tid: is_ready.recv().expect("a namespace"), work }
    }

    /// The name that `ip link ... netns` knows the namespace by.
    pub fn tid(&self) -> &str {
        &self.tid
    }

    /// What `job` returns, done in there. What it starts is in there too.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = channel();
        let job = move || done.send(job()).expect("the test waits");
        self.work.send(Box::new(job)).expect("the thread lives");
        result.recv().expect("the job did not panic")
    }

    /// Gives this namespace an interface with an address, plugged into a bridge of the caller's.
    /// `name` is that of the bridge's side.
    pub fn plug(&self, bridge: &str, name: &str, interface: &'static str, address: &'static str) {
        let peer = ["peer", "name", interface, "netns", &self.tid];
        program("ip", &[&["link", "add", name, "type", "veth"][..], &peer].concat());
        program("ip", &["link", "set", name, "master", bridge, "up"]);
        self.run(move || {
            program("ip", &["address", "add", address, "dev", interface]);
            program("ip", &["link", "set", interface, "up"]);
        });
    }

    /// Joins this namespace to the caller's, which gets the addresses that end in 1; this one gets
    /// those that end in 2, and the caller's as its gateway.
    pub fn join(&self, name: &'static str, v4: &'static str, v6: &'static str) {
        let peer = ["peer", "name", "eth0", "netns", &self.tid];
        program("ip", &[&["link", "add", name, "type", "veth"][..], &peer].concat());
        let set = move |dev: &str, host: u8| {
            program("ip", &["address", "add", &format!("{v4}.{host}/24"), "dev", dev]);
            let v6 = format!("{v6}::{host}/64");
            program("ip", &["address", "add", &v6, "dev", dev, "nodad"]);
            program("ip", &["link", "set", dev, "up"]);
        };
        set(name, 1);
        self.run(move || {
            set("eth0", 2);
            program("ip", &["route", "add", "default", "via", &format!("{v4}.1")]);
            program("ip", &["-6", "route", "add", "default", "via", &format!("{v6}::1")]);
        });
    }
}
