//! The share of clients that get another endpoint when an endpoint or a gateway comes or goes. The
//! routing tables and the choice of endpoints are the gateway's own, so the figures are the same on
//! every machine. The router in front of several gateways is a model.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use clap::Args;
use config_sync::check::parse;
use config_sync::compile::compile;
use config_sync::compile::names::Names;
use config_sync::table::address::EndpointAddress;
use config_sync::table::routing::RoutingTable;
use data_plane::proxy::balance::Balancer;

use crate::report::chart::{Chart, Curves, Plot};
use crate::report::draw;
use crate::stats::Interval;

#[derive(Args)]
pub struct Options {
    /// Where moves-endpoints and moves-gateways go, as SVG and PNG.
    #[arg(long, default_value = "bench/results/plots")]
    out: PathBuf,
}

const CLIENTS: u16 = 10_000;
/// The most endpoints, or gateways.
const MOST: u8 = 20;
/// The endpoints behind each gateway, where gateways come and go.
const BEHIND: u8 = 10;
/// The rows of the tables, which a page shows.
const SHOWN: [u8; 5] = [2, 3, 5, 10, 20];

pub fn run(options: &Options) -> anyhow::Result<()> {
    let endpoints = (2..=MOST).map(of_endpoints).collect::<anyhow::Result<Vec<_>>>()?;
    let gateways = (2..=MOST).map(of_gateways).collect::<anyhow::Result<Vec<_>>>()?;
    let shown = |count: u8| SHOWN.contains(&count);
    print!("{}", endpoint_table(endpoints.iter().filter(|row| shown(row.count))));
    println!();
    print!("{}", gateway_table(gateways.iter().filter(|row| shown(row.count))));
    draw(&[endpoint_chart(&endpoints), gateway_chart(&gateways)], &options.out)
}

/// A client's address. The clients are neighbours, as the clients of one network are.
fn client(number: u16) -> SocketAddr {
    let [high, low] = number.to_be_bytes();
    SocketAddr::from(([198, 18, high, low], 40_000))
}

/// The table of gateways with these endpoints.
fn table(endpoints: impl Iterator<Item = u8>, balance: &str) -> anyhow::Result<RoutingTable> {
    let endpoints: Vec<_> =
        endpoints.map(|number| format!("\"10.0.0.{}:5432\"", number + 1)).collect();
    let text = format!(
        "[[listeners]]\nname = \"l\"\nprotocol = \"TCP\"\naddress = \"127.0.0.1:5432\"\n\
         balance = \"{balance}\"\nendpoints = [{}]\n",
        endpoints.join(", ")
    );
    let config = parse("moves.toml", &text).map_err(|problems| anyhow!("{problems}"))?;
    compile(&config, &mut Names::new(), 1).map_err(|problems| anyhow!("{problems}"))
}

/// The endpoint that a worker with this balancer gives to the client.
fn endpoint(
    table: &RoutingTable,
    balancer: &mut Balancer,
    client: SocketAddr,
) -> anyhow::Result<EndpointAddress> {
    let backend = table.backends.first().context("no backend")?;
    Ok(balancer.endpoint(backend, client, &[]).context("no endpoint")?.address)
}

fn balancer(table: &RoutingTable, seed: u64) -> Balancer {
    let mut balancer = Balancer::new(seed);
    balancer.prepare(table);
    balancer
}

/// The endpoint of each client, by `source-hash`.
fn chosen(endpoints: impl Iterator<Item = u8>) -> anyhow::Result<Vec<EndpointAddress>> {
    let table = table(endpoints, "source-hash")?;
    let mut balancer = balancer(&table, 0);
    (0..CLIENTS).map(|number| endpoint(&table, &mut balancer, client(number))).collect()
}

/// Percentages of the clients.
#[derive(Debug)]
struct OfEndpoints {
    count: u8,
    /// One of `count` endpoints goes: its own clients move, and others. Means over the endpoints.
    gone: f64,
    moved_by_gone: f64,
    /// One more endpoint comes: some clients go to it, and others move between the old ones.
    come: f64,
    moved_by_come: f64,
    /// All that would move if the hash modulo the number of endpoints were the choice, when one
    /// goes.
    modulo: f64,
}

fn of_endpoints(count: u8) -> anyhow::Result<OfEndpoints> {
    let before = chosen(0..count)?;
    let (mut gone, mut moved_by_gone) = (0, 0);
    for removed in 0..count {
        let after = chosen((0..count).filter(|number| *number != removed))?;
        let own = missing(&before, &after);
        gone += own;
        moved_by_gone += differing(&before, &after) - own;
    }
    let after = chosen(0..=count)?;
    let come = missing(&after, &before);
    let hashes = || (0..CLIENTS).map(|number| mixed(u64::from(number)));
    let (many, fewer) = (u64::from(count), u64::from(count - 1));
    let modulo = hashes().filter(|hash| hash % many != hash % fewer).count();
    Ok(OfEndpoints {
        count,
        gone: percent(gone) / f64::from(count),
        moved_by_gone: percent(moved_by_gone) / f64::from(count),
        come: percent(come),
        moved_by_come: percent(differing(&before, &after) - come),
        modulo: percent(modulo),
    })
}

/// The number of clients at endpoints that have no client in `others`.
fn missing(clients: &[EndpointAddress], others: &[EndpointAddress]) -> usize {
    let others: BTreeSet<_> = others.iter().collect();
    clients.iter().filter(|of| !others.contains(of)).count()
}

fn differing(before: &[EndpointAddress], after: &[EndpointAddress]) -> usize {
    before.iter().zip(after).filter(|(was, is)| was != is).count()
}

/// Percentages of the clients. One of `count` gateways goes, and the router gives its own clients
/// to the others, but moves no other client. Means over the gateways.
#[derive(Debug)]
struct OfGateways {
    count: u8,
    /// Clients that come through another gateway.
    cut: f64,
    /// Clients that get another endpoint there, by the balance of the gateways.
    source_hash: f64,
    round_robin: f64,
}

fn of_gateways(count: u8) -> anyhow::Result<OfGateways> {
    let (mut cut, mut moved) = ([0_usize; 2], [0_usize; 2]);
    for (at, balance) in ["source-hash", "round-robin"].into_iter().enumerate() {
        let table = table(0..BEHIND, balance)?;
        for gone in 0..count {
            let gateways = (0..count).map(|gateway| balancer(&table, gateway.into()));
            let mut gateways: Vec<_> = gateways.collect();
            let mut before = Vec::new();
            for number in 0..CLIENTS {
                let own = routed(number, count, None);
                let balancer = &mut gateways[usize::from(own)];
                before.push((own, endpoint(&table, balancer, client(number))?));
            }
            for (number, (own, was)) in (0..CLIENTS).zip(before) {
                if own != gone {
                    continue;
                }
                let other = routed(number, count, Some(gone));
                let balancer = &mut gateways[usize::from(other)];
                cut[at] += 1;
                moved[at] += usize::from(endpoint(&table, balancer, client(number))? != was);
            }
        }
    }
    let share = |clients: usize| percent(clients) / f64::from(count);
    Ok(OfGateways {
        count,
        cut: share(cut[0]),
        source_hash: share(moved[0]),
        round_robin: share(moved[1]),
    })
}

/// The gateway to which a router with resilient hashing sends a client: the one with the largest
/// hash of both, so that a gateway that goes moves its own clients only.
fn routed(client: u16, gateways: u8, gone: Option<u8>) -> u8 {
    let there = (0..gateways).filter(|gateway| Some(*gateway) != gone);
    let hash = |gateway: &u8| mixed(u64::from(client) << 8 | u64::from(*gateway));
    there.max_by_key(hash).unwrap_or_default()
}

/// The finalizer of SplitMix64.
fn mixed(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn percent(clients: usize) -> f64 {
    clients as f64 * 100.0 / f64::from(CLIENTS)
}

fn endpoint_table<'r>(rows: impl Iterator<Item = &'r OfEndpoints>) -> String {
    let mut text = "| endpoints | one goes: its own clients | and others | one comes: it gets | \
                    and others move | one goes, plain hash |\n|---|---|---|---|---|---|\n"
        .to_owned();
    for row in rows {
        let OfEndpoints { count, gone, moved_by_gone, come, moved_by_come, modulo } = row;
        _ = writeln!(
            text,
            "| {count} | {gone:.1} % | {moved_by_gone:.1} % | {come:.1} % | {moved_by_come:.1} % | \
             {modulo:.1} % |"
        );
    }
    text
}

fn gateway_table<'r>(rows: impl Iterator<Item = &'r OfGateways>) -> String {
    let mut text = "| gateways | clients of the one that goes | get another endpoint: \
                    `source-hash` | `round-robin` |\n|---|---|---|---|\n"
        .to_owned();
    for OfGateways { count, cut, source_hash, round_robin } in rows {
        _ = writeln!(text, "| {count} | {cut:.1} % | {source_hash:.1} % | {round_robin:.1} % |");
    }
    text
}

fn endpoint_chart(rows: &[OfEndpoints]) -> (Plot, Chart) {
    let lines = [
        line("one goes", rows, |row| (row.count, row.gone + row.moved_by_gone)),
        line("its own clients", rows, |row| (row.count, row.gone)),
        line("one comes", rows, |row| (row.count, row.come + row.moved_by_come)),
        line("plain hash", rows, |row| (row.count, row.modulo)),
    ];
    let title = "Clients that get another endpoint when one of N comes or goes (lower is better)";
    curves("moves-endpoints", title, "endpoints", lines.to_vec())
}

fn gateway_chart(rows: &[OfGateways]) -> (Plot, Chart) {
    let lines = [
        line("source-hash", rows, |row| (row.count, row.source_hash)),
        line("round-robin", rows, |row| (row.count, row.round_robin)),
        line("its own clients", rows, |row| (row.count, row.cut)),
    ];
    let title = "Clients that get another endpoint when one of N gateways goes (lower is better)";
    curves("moves-gateways", title, "gateways", lines.to_vec())
}

type Line = (String, Vec<(f64, Interval)>);

fn line<R>(name: &str, rows: &[R], of: impl Fn(&R) -> (u8, f64)) -> Line {
    let points = rows.iter().map(|row| {
        let (count, share) = of(row);
        (f64::from(count), Interval { low: share, middle: share, high: share, count: 1 })
    });
    (name.to_owned(), points.collect())
}

fn curves(file: &str, title: &str, across: &'static str, lines: Vec<Line>) -> (Plot, Chart) {
    let plot = Plot { file: file.to_owned(), title: title.to_owned() };
    (plot, Chart::Curves(Curves { across, scale: "% of the clients".to_owned(), lines }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_shows_what_is_measured() {
        let page = include_str!("../../images/docs/several-machines.md");
        let endpoints = SHOWN.map(|count| of_endpoints(count).expect("a table"));
        let gateways = SHOWN.map(|count| of_gateways(count).expect("a table"));
        for table in [endpoint_table(endpoints.iter()), gateway_table(gateways.iter())] {
            assert!(page.contains(&table), "`bench moves` prints the tables of the page:\n{table}");
        }
    }

    #[test]
    fn all_gateways_give_a_client_to_one_endpoint() {
        let row = of_gateways(3).expect("a table");
        assert!(row.source_hash == 0.0 && row.round_robin > row.cut * 0.8, "{row:?}");
    }
}
