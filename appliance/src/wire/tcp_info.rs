//! Reads what Linux knows of a TCP connection (`struct tcp_info`, include/uapi/linux/tcp.h). The
//! kernel only ever appends fields, so the places below hold for Linux 5.4 and later.

/// The bytes of `struct tcp_info` up to `tcpi_snd_wnd`, the last field that [`read`] needs.
const SIZE: usize = 232;

/// The state of one connection of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// Bytes that the peer has sent and the gateway has not read.
    pub unread: u32,
    /// Bytes that the gateway has sent and the peer's kernel has not acknowledged.
    pub unacked_bytes: u32,
    /// Of these, the bytes that have not left this machine.
    pub not_sent: u32,
    /// Microseconds.
    pub rtt: u32,
    pub rttvar: u32,
    pub min_rtt: u32,
    /// Segments.
    pub cwnd: u32,
    pub unacked: u32,
    pub lost: u32,
    /// Segments that were sent again, ever.
    pub retransmits: u32,
    /// Attempts in a row that got no answer: of a segment, and of a probe of a closed window.
    pub timeouts: u32,
    pub probes: u32,
    /// Bytes.
    pub mss: u32,
    /// The bytes that the peer is ready to take.
    pub window: u32,
    /// Bytes per second. 0: unknown.
    pub delivery_rate: u64,
    pub bytes_acked: u64,
    pub bytes_received: u64,
    /// Microseconds, ever: sending, and waiting for the peer's window meanwhile.
    pub busy: u64,
    pub window_limited: u64,
    /// Milliseconds.
    pub since_received: u32,
}

/// Reads 4 bytes of `unread`, 4 bytes of `unacked_bytes`, and `struct tcp_info`. `None`: the bytes
/// are too few.
pub fn read(bytes: &[u8]) -> Option<TcpInfo> {
    let (head, info) = bytes.split_at_checked(8)?;
    let info: &[u8; SIZE] = info.first_chunk()?;
    let word = |bytes: &[u8], at: usize| {
        let bytes = bytes[at..].first_chunk().copied().unwrap_or_default();
        u32::from_ne_bytes(bytes)
    };
    let long =
        |at: usize| u64::from_ne_bytes(info[at..].first_chunk().copied().unwrap_or_default());
    let known = |value: u32| if value == u32::MAX { 0 } else { value };
    Some(TcpInfo {
        unread: word(head, 0),
        unacked_bytes: word(head, 4),
        timeouts: info[2].into(),
        probes: info[3].into(),
        mss: word(info, 16),
        unacked: word(info, 24),
        lost: word(info, 32),
        since_received: word(info, 52),
        rtt: word(info, 68),
        rttvar: word(info, 72),
        cwnd: word(info, 80),
        retransmits: word(info, 100),
        bytes_acked: long(120),
        bytes_received: long(128),
        not_sent: word(info, 144),
        min_rtt: known(word(info, 148)),
        delivery_rate: long(160),
        busy: long(168),
        window_limited: long(176),
        window: word(info, 228),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_kernel_puts_them() {
        let mut bytes = vec![0; 8 + SIZE];
        let mut put = |at: usize, value: u32| {
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        };
        for (at, value) in
            [(0, 1), (4, 2), (8 + 68, 3), (8 + 80, 4), (8 + 148, u32::MAX), (8 + 228, 5)]
        {
            put(at, value);
        }
        bytes[8 + 160..8 + 168].copy_from_slice(&(1_u64 << 40).to_ne_bytes());
        let info = read(&bytes).expect("enough bytes");
        let expected = TcpInfo {
            unread: 1,
            unacked_bytes: 2,
            rtt: 3,
            cwnd: 4,
            window: 5,
            delivery_rate: 1 << 40,
            ..TcpInfo::default()
        };
        assert_eq!(info, expected);
        bytes.push(9);
        assert_eq!(read(&bytes), Some(info), "a later kernel has more to say");
        assert!((0..8 + SIZE).all(|len| read(&bytes[..len]).is_none()));
    }
}
