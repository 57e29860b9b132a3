use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd};

use crate::contract::Kind;

use super::*;
use crate::ring::buffers::Buffers;
use crate::ring::buffers::Shape;
use crate::ring::features::Features;
use crate::ring::queue::{OF_CLIENTS, Queue, Target};
use crate::ring::sys::calls;
use crate::ring::turn::Turn;
use crate::ring::udp::batch::Sends;
use crate::ring::udp::train::Train;

/// The kernel does not cut trains on a socket without checksums (EINVAL). Each datagram then goes
/// by itself, as on a path with an MTU below the datagrams' size.
#[test]
fn a_train_that_the_kernel_does_not_cut_is_sent_singly() {
    let mut queue = Queue::new(&Features::probe().expect("io_uring")).expect("a ring");
    let mut buffers = Buffers::new(&[OF_CLIENTS], 2, &queue).expect("buffers");
    queue.enable().expect("it begins");
    let mut sends = Sends::new(2, 1);
    let mut turn = Turn::default();
    let server = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let client = UdpSocket::bind("127.0.0.1:0").expect("a port");
    client.connect(server.local_addr().expect("bound")).expect("connected");
    calls::set_option(client.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, &1_i32).expect("set");

    buffers.receive(0, 0, &Shape::new(0, 0));
    let mut train = Train::new(16, 250);
    train.set_size(100);
    let token = Token { kind: Kind::Upstream, slot: 0, generation: 1 };
    let target = Some(Target::Plain(client.as_raw_fd()));
    sends.add_up(token, target, (BufferId(0), Part::default()), train, &mut turn);
    sends.flush(&mut buffers, &mut queue, &mut turn);

    let sizes: Vec<_> = (0..3).map(|_| server.recv(&mut [0; 1000]).expect("a datagram")).collect();
    assert_eq!(sizes, [100, 100, 50]);
    assert_eq!((turn.events.len(), buffers.free()), (0, 2));
    // The next train of this size is not tried as a train first. A train of smaller datagrams may
    // be.
    assert_eq!(sends.paths[0].in_trains, 99);
    let small = Train { start: 16, len: 60, size: 30 };
    for train in [train, small] {
        let part = Part { more: true, ..Part::default() };
        sends.add_up(token, target, (BufferId(0), part), train, &mut turn);
    }
    sends.sort_sends();
    assert_eq!((&sends.singly[..], &sends.again[..]), (&[0][..], &[1][..]));
}

#[test]
fn datagrams_that_a_header_makes_too_large_for_their_path_are_told_of() {
    let mut sends = Sends::new(2, 2);
    let mut turn = Turn::default();
    let token = |slot| Token { kind: Kind::Upstream, slot, generation: 1 };
    let target = Some(Target::Registered(0));
    sends.path(token(0)).takes(1_000);
    let mut add = |slot, head, sizes: (u32, u32)| {
        let train = Train { start: 0, len: sizes.0, size: sizes.1 };
        let part = Part { strip: 8, head: (0, head), more: true, ..Part::default() };
        sends.add_up(token(slot), target, (BufferId(0), part), train, &mut turn);
        let fragmented = |(_, event): (_, Event)| match event {
            Event::Fragmented { count } => count,
            other => panic!("{other:?}"),
        };
        turn.events.drain(..).map(fragmented).sum::<u32>()
    };
    // 28 bytes replace 8: the datagrams have 1,000 bytes in the end, and 1,001.
    assert_eq!((add(0, 28, (980, 980)), add(0, 28, (981, 981))), (0, 1));
    // Two of the three are too large now. Two others were too large before.
    assert_eq!((add(0, 28, (2_500, 990)), add(0, 28, (2_020, 1_010))), (2, 0));
    assert_eq!((add(0, 0, (990, 990)), add(1, 28, (990, 990))), (0, 0), "no head, no path");
}

#[test]
fn trains_are_cut_at_the_limits_of_one_message() {
    let mut sends = Sends::new(4, 1);
    let token = Token { kind: Kind::Upstream, slot: 0, generation: 1 };
    let (target, whole) = (Some(Target::Registered(0)), Part::default());
    let mut train = Train::new(0, 65_500);
    train.set_size(1_000);
    sends.add_up(token, target, (BufferId(0), whole), train, &mut Turn::default());
    let mut small = Train::new(0, 128);
    small.set_size(2);
    sends.add_up(token, target, (BufferId(1), whole), small, &mut Turn::default());
    let last = Train::new(0, 2);
    sends.add_up(token, target, (BufferId(2), whole), last, &mut Turn::default());
    let counts: Vec<_> = sends.sends.iter().map(|send| (send.count, send.bytes)).collect();
    assert_eq!(counts, [(64, 64_000), (2, 1_500), (64, 128), (1, 2)]);
}
