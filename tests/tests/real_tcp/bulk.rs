//! Bulk: the last bytes, the end, and pacing.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::sync::mpsc;
use std::time::Duration;

use ringway_tests::real::config::forward;
use ringway_tests::real::{Gateway, Pattern, Server, connect, free_address, was_reset};
use socket2::SockRef;

use crate::{abort, forwarding, handed_over, next};

/// Large answers and their last byte, with the direction in splice mode when the FIN comes.
#[test]
fn last_byte_of_a_bulk_answer_is_intact() {
    const LEN: u64 = 50_000_003;
    let server = Server::tcp(|mut stream| {
        let mut question = Vec::new();
        stream.read_to_end(&mut question).expect("a question");
        Pattern::new(2).send(&stream, LEN).expect("the answer is taken");
    });
    let (gateway, address) = forwarding(&server, "");
    for _ in 0..3 {
        let mut client = connect(address);
        client.write_all(b"?").expect("sent");
        client.shutdown(Shutdown::Write).expect("a FIN");
        Pattern::new(2).expect(&client, LEN).expect("all of it");
        assert_eq!(client.read(&mut [0]).expect("a FIN"), 0);
    }
    for line in gateway.closes(3) {
        assert_eq!((line.number("bytes_up"), line.number("bytes_down")), (1, LEN));
    }
}

/// What lies below the mark of a bulk stream arrives all the same: while the stream pauses, before
/// its FIN, and before its reset, whatever the size.
#[test]
fn tails_below_the_mark_of_a_bulk_stream_arrive() {
    const RUN: u64 = 3_000_000;
    const MARK: u64 = 256 << 10;
    let sizes = [1, 1_000, MARK / 4, MARK / 2 - 1, MARK / 2, MARK - 1, MARK, MARK + 1, 4 << 20];
    let (server, accepted) = handed_over();
    let address = free_address();
    let limits = "[limits]\nbulk_bytes = 262144\n";
    let gateway = Gateway::start(&(forward("TCP", address, [server.address], "") + limits));
    let runs = || gateway.metrics().value("ringway_bulk_runs_total", &[]);
    let mut closes = 0;
    for size in sizes {
        for ending in [Shutdown::Write, Shutdown::Both] {
            let before = runs();
            let mut client = connect(address);
            client.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
            let endpoint = next(&accepted);
            let (go, wait) = mpsc::channel();
            let sender = std::thread::spawn(move || {
                let mut pattern = Pattern::new(size);
                for len in [RUN, size, RUN, size] {
                    pattern.send(&endpoint, len).expect("sent");
                    let () = wait.recv().expect("the client has it");
                }
                // A close with a byte unread is a reset.
                match ending {
                    Shutdown::Both => abort(endpoint),
                    _ => endpoint.shutdown(ending).expect("a FIN"),
                }
            });
            let mut pattern = Pattern::new(size);
            for len in [RUN, size, RUN, size] {
                pattern.expect(&client, len).unwrap_or_else(|error| panic!("{size}: {error}"));
                go.send(()).expect("the sender waits");
            }
            match ending {
                Shutdown::Both => assert!(was_reset(&mut client), "{size}"),
                _ => assert_eq!(client.read(&mut [0]).expect("a FIN"), 0, "{size}"),
            }
            sender.join().expect("no panic");
            assert!(runs() > before, "{size}: no direction became bulk");
            drop(client);
            closes += 1;
        }
    }
    for line in gateway.closes(closes) {
        assert_eq!(line.number("bytes_up"), 0);
    }
}

/// A bulk stream that ends in the middle, by FIN or reset: what came before is delivered, and the
/// end is not a clean one if it was not.
#[test]
fn bulk_streams_end_as_they_were_ended_wherever_that_is() {
    let server = Server::tcp(|mut stream| {
        let mut question = [0; 9];
        stream.read_exact(&mut question).expect("a question");
        let len = u64::from_le_bytes(question[..8].try_into().expect("eight bytes"));
        Pattern::new(3).send(&stream, len).expect("the answer is taken");
        match question[8] {
            0 => drop(stream),
            _ => {
                // Once it has all arrived, so that the reset overtakes nothing.
                let _ = stream.read(&mut [0]);
                abort(stream);
            }
        }
    });
    let address = free_address();
    let limits = "[limits]\nbulk_bytes = 262144\n";
    let gateway = Gateway::start(&(forward("TCP", address, [server.address], "") + limits));
    let mark = 256_u64 << 10;
    let lengths = [2 << 20, (2 << 20) + 1, (2 << 20) + mark - 1, (2 << 20) + mark, 5_000_011];
    for len in lengths {
        for reset in [0, 1] {
            let mut client = connect(address);
            client.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
            let mut question = len.to_le_bytes().to_vec();
            question.push(reset);
            client.write_all(&question).expect("sent");
            Pattern::new(3).expect(&client, len).unwrap_or_else(|error| panic!("{len}: {error}"));
            if reset == 1 {
                client.write_all(b"x").expect("sent");
                assert!(was_reset(&mut client), "{len}");
            } else {
                assert_eq!(client.read(&mut [0]).expect("a FIN"), 0, "{len}");
            }
        }
    }
    assert!(gateway.metrics().value("ringway_bulk_runs_total", &[]) > 0);
}

/// Pacing is taken off bulk to a peer on this machine, unless the configuration names a congestion
/// control; where the kernel's own does not pace, there is nothing to take.
#[test]
fn bulk_to_a_near_peer_is_not_paced() {
    let default = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
    let default = default.expect("Linux has it");
    let paced = u64::from(default.starts_with("bbr"));
    for (named, changed) in [("", paced), ("reno", 0), (default.trim(), 0)] {
        let server = Server::tcp(|mut stream| {
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
            let _ = stream.write_all(b"done");
        });
        let option = match named {
            "" => String::new(),
            name => format!("congestion = \"{name}\"\n"),
        };
        let address = free_address();
        let text = forward("TCP", address, [server.address], &option) + &option;
        let gateway = Gateway::start(&(text + "[limits]\nbulk_bytes = 262144\n"));
        let mut client = connect(address);
        Pattern::new(5).send(&client, 16 << 20).expect("sent");
        client.shutdown(Shutdown::Write).expect("a FIN");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("an answer");
        assert_eq!(answer, "done");
        let metrics = gateway.metrics();
        assert!(metrics.value("ringway_bulk_runs_total", &[]) > 0, "{named}");
        assert_eq!(metrics.value("ringway_unpaced_total", &[]), changed, "{named}");
    }
}

/// Telnet's and FTP's ABOR, say: bytes behind the mark arrive, and the end comes after them.
#[test]
fn urgent_data_in_the_middle_of_bulk_loses_nothing() {
    let (server, accepted) = handed_over();
    let (gateway, address) = forwarding(&server, "");
    for bulk in [10, 1 << 16, 1 << 22] {
        let mut client = connect(address);
        let mut endpoint = next(&accepted);
        let mut pattern = Pattern::new(1);
        client.write_all(&pattern.take(bulk)).expect("sent");
        let mut got = vec![0; bulk];
        endpoint.read_exact(&mut got).expect("all in front of the mark");
        assert_eq!(SockRef::from(&client).send_out_of_band(b"!").expect("sent"), 1);
        let behind = pattern.take(5_000);
        client.write_all(&behind).expect("sent");
        let mut rest = vec![0; behind.len()];
        endpoint.read_exact(&mut rest).expect("all behind the mark");
        assert!(rest == behind, "other bytes behind the mark");
        client.shutdown(Shutdown::Write).expect("a FIN");
        assert_eq!(endpoint.read(&mut [0]).expect("the FIN"), 0);
    }
    gateway.closes(3);
}
