//! Attaches classic BPF programs to listening sockets: one gives each source its worker, one turns
//! new connections away. Both need no privilege.

use std::io;
use std::os::fd::BorrowedFd;

use config_sync::table::steering::{SPREAD, Secrets, secrets};
use libc::{
    BPF_A, BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD,
    BPF_LDX, BPF_LSH, BPF_MEM, BPF_MISC, BPF_MOD, BPF_MUL, BPF_RET, BPF_RSH, BPF_ST, BPF_TAX,
    BPF_W, BPF_X, BPF_XOR, sock_filter,
};

use crate::ring::sys::calls::set_option;

/// Spreads the sockets of a SO_REUSEPORT group by source address and port: socket number `hash %
/// sockets`, in the order in which the sockets joined. The CPU never decides, because a flow's
/// packets may arrive on any CPU. Attach the program to the first socket, before the others join.
///
/// `seed` is the process's secret. Without the seed, nobody can tell which sources share a worker,
/// and so nobody can choose sources that all reach one worker.
///
/// # Errors
///
/// Errors of setsockopt(2).
pub fn attach(fd: BorrowedFd<'_>, ipv4: bool, sockets: usize, seed: u64) -> io::Result<()> {
    let sockets = u32::try_from(sockets).map_err(io::Error::other)?;
    let secrets = secrets(seed);
    let program = if ipv4 { steer_ipv4(sockets, secrets) } else { steer_ipv6(sockets, secrets) };
    set_program(fd, libc::SO_ATTACH_REUSEPORT_CBPF, &program)
}

/// Makes a listening socket turn new connections away. Connections with an answered SYN still
/// complete. The socket's filter sees segments from the TCP header on.
///
/// # Errors
///
/// Errors of setsockopt(2).
pub fn refuse_new_connections(fd: BorrowedFd<'_>) -> io::Result<()> {
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    let program = [
        op(BPF_LD | BPF_B | BPF_ABS, FLAGS),
        op(BPF_ALU | BPF_AND | BPF_K, SYN | ACK),
        jump_if_equal(SYN, 0, 1),
        op(BPF_RET | BPF_K, 0),
        op(BPF_RET | BPF_K, u32::MAX),
    ];
    set_program(fd, libc::SO_ATTACH_FILTER, &program)
}

/// `SKF_NET_OFF`, -0x100000. Offsets from here on count from the network header. The program's own
/// data begins only behind the transport header.
const NETWORK: u32 = 0xfff0_0000;

fn steer_ipv4(sockets: u32, secrets: Secrets) -> Vec<sock_filter> {
    const SOURCE: u32 = 12;
    let mut program = vec![
        op(BPF_LD | BPF_W | BPF_ABS, NETWORK + SOURCE),
        op(BPF_ALU | BPF_XOR | BPF_K, secrets[0]),
        op(BPF_ALU | BPF_MUL | BPF_K, SPREAD[0]),
        op(BPF_ST, 0),
        // The first byte has the length of the header in words, because options may follow the
        // addresses.
        op(BPF_LD | BPF_B | BPF_ABS, NETWORK),
        op(BPF_ALU | BPF_AND | BPF_K, 15),
        op(BPF_ALU | BPF_LSH | BPF_K, 2),
        op(BPF_MISC | BPF_TAX, 0),
        op(BPF_LD | BPF_H | BPF_IND, NETWORK),
        op(BPF_LDX | BPF_MEM, 0),
        op(BPF_ALU | BPF_XOR | BPF_X, 0),
    ];
    program.extend(finish(sockets, secrets));
    program
}

fn steer_ipv6(sockets: u32, secrets: Secrets) -> Vec<sock_filter> {
    const NEXT_HEADER: u32 = 6;
    const SOURCE: u32 = 8;
    const HEADER: u32 = 40;
    let mut program = vec![
        op(BPF_LD | BPF_W | BPF_ABS, NETWORK + SOURCE),
        op(BPF_ALU | BPF_XOR | BPF_K, secrets[0]),
    ];
    for word in 1..4 {
        program.extend([
            op(BPF_ALU | BPF_MUL | BPF_K, SPREAD[0]),
            op(BPF_MISC | BPF_TAX, 0),
            op(BPF_LD | BPF_W | BPF_ABS, NETWORK + SOURCE + 4 * word),
            op(BPF_ALU | BPF_XOR | BPF_X, 0),
        ]);
    }
    program.extend([
        op(BPF_ALU | BPF_MUL | BPF_K, SPREAD[0]),
        op(BPF_ST, 0),
        // Behind extension headers the port is in another place, so only the address counts.
        op(BPF_LD | BPF_B | BPF_ABS, NETWORK + NEXT_HEADER),
        jump_if_equal(libc::IPPROTO_TCP.unsigned_abs(), 3, 0),
        jump_if_equal(libc::IPPROTO_UDP.unsigned_abs(), 2, 0),
        op(BPF_LD, 0),
        op(BPF_JMP, 1),
        op(BPF_LD | BPF_H | BPF_ABS, NETWORK + HEADER),
        op(BPF_LDX | BPF_MEM, 0),
        op(BPF_ALU | BPF_XOR | BPF_X, 0),
    ]);
    program.extend(finish(sockets, secrets));
    program
}

/// Spreads the value of A over all its bits, and returns it modulo `sockets`.
fn finish(sockets: u32, secrets: Secrets) -> [sock_filter; 11] {
    [
        op(BPF_ALU | BPF_XOR | BPF_K, secrets[1]),
        op(BPF_ALU | BPF_MUL | BPF_K, SPREAD[1]),
        op(BPF_MISC | BPF_TAX, 0),
        op(BPF_ALU | BPF_RSH | BPF_K, 15),
        op(BPF_ALU | BPF_XOR | BPF_X, 0),
        op(BPF_ALU | BPF_XOR | BPF_K, secrets[2]),
        op(BPF_ALU | BPF_MUL | BPF_K, SPREAD[2]),
        op(BPF_ALU | BPF_RSH | BPF_K, 12),
        op(BPF_ALU | BPF_AND | BPF_K, 0xf_ffff),
        op(BPF_ALU | BPF_MOD | BPF_K, sockets),
        op(BPF_RET | BPF_A, 0),
    ]
}

fn op(code: u32, k: u32) -> sock_filter {
    let code = u16::try_from(code).expect("codes have 16 bits");
    sock_filter { code, jt: 0, jf: 0, k }
}

fn jump_if_equal(k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { jt, jf, ..op(BPF_JMP | BPF_JEQ | BPF_K, k) }
}

fn set_program(fd: BorrowedFd<'_>, option: i32, program: &[sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        // The kernel only reads the program.
        filter: program.as_ptr().cast_mut(),
    };
    set_option(fd, libc::SOL_SOCKET, option, &program)
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket};
    use std::os::fd::AsFd as _;
    use std::time::Duration;

    use config_sync::table::steering::worker_of;
    use socket2::{Domain, Socket, Type};

    use super::*;

    #[test]
    fn the_kernel_steers_as_it_is_computed() {
        const SEED: u64 = 0x1234_5678_9abc_def0;
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let mut address: SocketAddr = address.parse().expect("an address");
            let group: Vec<UdpSocket> = (0..3)
                .map(|number| {
                    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None);
                    let socket = socket.expect("a socket");
                    socket.set_reuse_port(true).expect("an option");
                    socket.bind(&address.into()).expect("an address");
                    if number == 0 {
                        attach(socket.as_fd(), address.is_ipv4(), 3, SEED).expect("a program");
                        let bound = socket.local_addr().expect("bound").as_socket();
                        address = bound.expect("an IP address");
                    }
                    UdpSocket::from(socket)
                })
                .collect();
            for socket in &group {
                socket.set_nonblocking(false).expect("a flag");
                socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
            }
            let mut got = [0; 3];
            for _ in 0..30 {
                let client = UdpSocket::bind((address.ip(), 0)).expect("a client");
                client.send_to(b"x", address).expect("it is sent");
                let source = client.local_addr().expect("bound");
                let worker = worker_of(source, 3, SEED);
                let (_, from) = group[worker].recv_from(&mut [0; 8]).expect("it comes there");
                assert_eq!(from, source);
                got[worker] += 1;
            }
            assert!(got.iter().all(|got| *got > 0), "all sockets are used: {got:?}");
        }
    }
}
