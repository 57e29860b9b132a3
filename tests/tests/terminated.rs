//! Sessions that speak TLS, in the simulated world.

use std::collections::BTreeMap;

use ringway_tests::tls_world;

/// `SEED=n` runs that one; `SEEDS=n` so many.
#[test]
fn tls_sessions_keep_their_promises() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(600),
    };
    let many = seeds.end - seeds.start >= 300;
    let mut reasons = BTreeMap::new();
    for seed in seeds {
        eprintln!("seed {seed}");
        *reasons.entry(tls_world::run(seed).word()).or_insert(0) += 1;
    }
    for reason in [
        "client_fin",
        "endpoint_fin",
        "client_truncated",
        "endpoint_truncated",
        "client_tls_failed",
        "endpoint_tls_failed",
        "client_reset",
        "endpoint_reset",
        "starttls_early",
        "endpoint_starttls_failed",
    ] {
        assert!(!many || reasons.contains_key(reason), "no seed ended by {reason}: {reasons:?}");
    }
}
