//! The rights that the path needs, and what is said without them.

use std::process::{Command, Stdio};

use ringway_tests::real::in_kernel::FORWARDING;
use ringway_tests::real::{Folder, Gateway, Launch, binary, in_own_network, program, wait_until};

use crate::{World, config, places, promotions};

/// Lets any user write the access log and read the configuration.
const OPENED: &[&str] = &["sh", "-c", r#"chmod 777 "$(dirname "$3")"; exec "$0" "$@""#];

/// The user that root becomes keeps the right to it, and so does the next process.
#[test]
fn another_user_keeps_the_right_to_it() {
    in_own_network(|| {
        let world = World::new();
        let (at, servers) = places()[0];
        let _server = world.server(servers[0], 0);
        let text = "user = \"nobody\"\n".to_owned() + &config("main", at, servers[0], "required");
        let gateway = Launch::default().socket().under(OPENED).start(&text);
        assert_eq!(world.player(at).play(100), [0]);
        assert_eq!(promotions(&gateway.metrics()), 1);
        gateway.asks(&["upgrade"]);
        assert_eq!(world.player(at).play(100), [0]);
        wait_until("the kernel forwards for the next process", || {
            promotions(&gateway.metrics()) > 0
        });
    });
}

/// With `sandbox`, a process that began without the path has no right to load programs, and a
/// reload that asks for the path says so.
#[test]
fn a_reload_brings_it_only_without_the_sandbox() {
    const FORBIDDEN: &str = "this process began without a `fast_path`";
    in_own_network(|| {
        let world = World::new();
        let (at, servers) = places()[0];
        let _server = world.server(servers[0], 0);
        let text = |word| config("main", at, servers[0], word);
        let gateway = Launch::default().socket().start(&text("off"));
        gateway.write(&text("required"));
        let refused = gateway.verb(&["reload"]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success(), "{said}");
        assert!(said.contains("fast_path: \"required\" can't be had"), "{said}");
        assert!(said.contains(FORBIDDEN) && said.contains("`sandbox = false`"), "{said}");
        assert_eq!(world.player(at).play(50), [0], "the configuration before is in force");
        gateway.reload(&text("auto"));
        gateway.says(&format!("workers forward all UDP flows: {FORBIDDEN}"));
        assert_eq!(world.player(at).play(100), [0]);
        assert_eq!(promotions(&gateway.metrics()), 0);
        drop(gateway);
        let free = |word| format!("sandbox = false\n{}", text(word));
        let gateway = Gateway::start(&free("off"));
        gateway.reload(&free("required"));
        assert_eq!(world.player(at).play(100), [0]);
        assert_eq!(promotions(&gateway.metrics()), 1);
    });
}

/// Root without the right to BPF, which is a part of CAP_SYS_ADMIN too.
const NO_BPF: [&str; 2] = ["setpriv", "--bounding-set=-cap_39,-sys_admin"];

#[test]
fn without_the_right_to_it_it_says_so() {
    in_own_network(|| {
        let world = World::new();
        let (at, servers) = places()[0];
        let _server = world.server(servers[0], 0);
        let text = |word| config("main", at, servers[0], word);
        let folder = Folder::new();
        let file = folder.write("ringway.toml", &text("required"));
        let started = |wrapper: &[&str]| {
            let output = Command::new(wrapper[0])
                .args(&wrapper[1..])
                .arg(binary())
                .args(["run", "--config"])
                .arg(&file)
                .stdin(Stdio::null())
                .output()
                .expect("starting");
            assert_eq!(output.status.code(), Some(1));
            String::from_utf8_lossy(&output.stderr).into_owned()
        };
        let said = started(&NO_BPF);
        assert!(said.contains("fast_path: \"required\" can't be had"), "{said}");
        assert!(said.contains("give it CAP_BPF and CAP_NET_ADMIN"), "{said}");
        program("sh", &["-c", &FORWARDING.replace('1', "0")]);
        let said = started(&["env"]);
        assert!(said.contains("sysctl net.ipv4.conf.lo.forwarding=1"), "{said}");
        program("sh", &["-c", FORWARDING]);
        // Where it is not required, workers forward.
        let gateway = Launch::default().under(&NO_BPF).start(&text("auto"));
        gateway.says("workers forward all UDP flows");
        assert_eq!(world.player(at).play(100), [0]);
        let metrics = gateway.metrics();
        assert_eq!(promotions(&metrics), 0);
        assert_eq!(metrics.value("ringway_datagrams_received_total", &[("side", "client")]), 100);
    });
}
