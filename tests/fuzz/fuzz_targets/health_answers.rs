//! Any answer at all to a health check of each type: no panic, an end at the latest with the end of
//! the answer, and never more bytes taken than were given.

#![no_main]

use std::sync::LazyLock;

use config_sync::check::parse;
use config_sync::health::probe::talk::Talk;
use config_sync::health::probe::talk::reply::{Channel, Facts, Reply};
use config_sync::model::health_check::HealthCheck;
use libfuzzer_sys::fuzz_target;

/// One check of each type that reads answers, and of their variants.
const CHECKS: &[&str] = &[
    "type = 'http', body = 'ok'",
    "type = 'http', body_regex = '^(a|b)+$', status = [200, '300-399']",
    "type = 'exchange', steps = [{ expect_regex = '^220 .*' }, { send = 'EHLO', expect = '250 ' }, \
     { send_hex = '00ff', expect_hex = 'ff00' }]",
    "type = 'mysql'",
    "type = 'mysql', user = 'u', password_file = '/p', role = 'primary'",
    "type = 'mysql', user = 'u', password_file = '/p', role = 'replica'",
    "type = 'postgres'",
    "type = 'postgres', user = 'u', password_file = '/p', role = 'primary'",
    "type = 'postgres', user = 'u', password_file = '/p', role = 'replica'",
    "type = 'redis'",
    "type = 'redis', role = 'primary', user = 'u', password_file = '/p'",
    "type = 'redis', role = 'replica'",
    "type = 'dns', query = 'example.com', rcode = ['NOERROR', 'NXDOMAIN']",
    "type = 'dns', query = '.', transport = 'tcp'",
    "type = 'sip'",
    "type = 'sip', transport = 'tcp'",
    "type = 'udp', send = 'ping', expect_regex = 'p.ng'",
    "type = 'agent', port = 1, send = 'hello'",
];

const CHANNELS: [Channel; 3] = [Channel::Plain, Channel::Unverified, Channel::Verified];

static PARSED: LazyLock<Vec<HealthCheck>> = LazyLock::new(|| {
    let check = |keys: &&str| {
        let text =
            format!("[[backends]]\nname = 'b'\nendpoints = []\nhealth_check = {{ {keys} }}\n");
        let config = parse("f", &text).unwrap_or_else(|problems| panic!("{text}{problems}"));
        config.backends[0].health_check.clone().expect("it is given").value
    };
    CHECKS.iter().map(check).collect()
});

fuzz_target!(|input: &[u8]| {
    let [which, piece, answer @ ..] = input else { return };
    let check = &PARSED[usize::from(*which) % PARSED.len()];
    let facts = Facts {
        host: "example.com".to_owned(),
        local: ([127, 0, 0, 1], 5_000).into(),
        password: Some(b"secret".to_vec()),
        random: 0x0102_0304_0506_0708,
        channel: CHANNELS[usize::from(*which) / PARSED.len() % CHANNELS.len()],
    };
    let (mut talk, _) = Talk::new(check, &facts);
    // The answer comes in pieces of this length. What is left after a step is of the next answer.
    let (mut begin, mut end) = (0, 0);
    loop {
        let ended = end == answer.len();
        match talk.reply(&answer[begin..end], ended) {
            Reply::More => {
                assert!(!ended, "nothing more will come");
                end = (end + usize::from(*piece) + 1).min(answer.len());
            }
            Reply::Say { taken, .. } | Reply::Secure { taken, .. } => {
                begin += taken;
                assert!(begin <= end, "only what has come can be taken");
            }
            Reply::Good | Reply::Share(_) | Reply::Bad(_) => return,
        }
    }
});
