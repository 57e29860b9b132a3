//! Ids that stay with their names from table to table.

use std::net::SocketAddr;

use config_sync::compile::names::Names;
use config_sync::table::routing::Transport;

use super::{ALL, load};

#[test]
fn ids_stay_with_their_names_from_table_to_table() {
    let mut names = Names::new();
    let first = load(ALL, &mut names, 1).expect("first");
    let (before, after) = ALL.split_at(ALL.find("[[listeners]]").expect("listeners"));
    let more = "[[listeners]]\nname = \"new\"\nprotocol = \"TCP\"\naddress = \"0.0.0.0:53\"\n\n";
    let text =
        format!("{before}{more}{after}[[backends]]\nname = \"z\"\nendpoints = [\"10.0.0.1:53\"]\n")
            .replace("\"[2001:db8::1]:53\", ", "");
    let second = load(&text, &mut names, 2).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(second.listeners[1].id, first.listeners[0].id);
    assert_eq!(second.sockets[1].id, first.sockets[0].id, "of an unchanged listener");
    assert_eq!(second.routes[0].id, first.routes[0].id);
    assert_eq!(second.backends[0].id, first.backends[0].id);
    assert_eq!(second.backends[0].endpoints[0].id, first.backends[0].endpoints[1].id);
    let other = second.backends[4].endpoints[0].id;
    assert_ne!(other, second.backends[0].endpoints[0].id, "the same address in another backend");
    let third = load(ALL, &mut names, 3).expect("third");
    assert_eq!(third.backends[0].endpoints, first.backends[0].endpoints, "gone and back");

    let gone = second.listeners[0].id;
    assert_eq!(names.listener(gone), Some("new"), "it may still have sessions");
    assert_eq!(names.endpoint(other), Some(("z", SocketAddr::from(([10, 0, 0, 1], 53)).into())));
    assert_eq!(
        names.socket(first.sockets[0].id).map(|bound| bound.transport),
        Some(Transport::Udp)
    );
    assert_eq!(names.route(first.routes[1].id), Some("web"));
    assert_eq!(names.backend(first.backends[2].id), Some("none"));
    assert_eq!(names.listeners().count(), 4);
    assert_eq!(names.endpoints().count(), 6);
}

#[test]
fn ids_that_run_out_are_a_problem_of_the_new_table() {
    let mut names = Names::new();
    let backend = |generation: u16| {
        let [high, low] = generation.to_be_bytes();
        let endpoints: Vec<_> =
            (0..8192).map(|i| format!("\"10.{high}.{low}.{}:{}\"", i % 250, 1 + i)).collect();
        format!("[[backends]]\nname = \"b\"\nendpoints = [{}]\n", endpoints.join(","))
    };
    for generation in 0..8 {
        assert!(load(&backend(generation), &mut names, 1).is_ok(), "{generation}");
    }
    let problems = load(&backend(8), &mut names, 1).expect_err("full");
    assert_eq!(problems.0.len(), 8192);
    assert!(problems.0[0].message.starts_with("too many endpoints"), "{}", problems.0[0]);
    assert!(load(&backend(3), &mut names, 1).is_ok(), "what is known is still known");
}
