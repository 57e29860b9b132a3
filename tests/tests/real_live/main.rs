//! A running gateway that is looked into and acted on: the admin API's socket, and the verbs.

mod access;
mod endpoints;
mod sessions;
mod status;
mod top;
mod why;

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;

use ringway_tests::real::{Server, connect, echo};
use serde_json::Value;

fn text<'v>(row: &'v Value, field: &str) -> &'v str {
    row.get(field).and_then(Value::as_str).unwrap_or_else(|| panic!("no {field} in {row}"))
}

fn rows(list: &Value) -> &[Value] {
    list.as_array().expect("a list")
}

/// Tags of this many sessions, one after the other.
fn tags(address: SocketAddr, count: usize) -> Vec<u8> {
    let tag = |_| {
        let mut byte = [0];
        connect(address).read_exact(&mut byte).expect("a tag");
        byte[0]
    };
    (0..count).map(tag).collect()
}

/// Says its tag, and echoes then.
fn tagged(tag: u8) -> Server {
    Server::tcp(move |mut stream| {
        stream.write_all(&[tag]).expect("the tag");
        echo(stream);
    })
}
