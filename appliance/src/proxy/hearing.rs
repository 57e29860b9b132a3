//! Leaves datagrams of clients in the kernel's queues while flows go from process to process, so
//! that no client's datagram comes before the client's flow.

use config_sync::table::routing::SocketId;

#[derive(Debug, Default)]
pub struct Hearing {
    /// Nothing is received on any socket, because the flows of the process before come first.
    waits: bool,
    /// Sockets on which nothing is received for now.
    deaf: Vec<Deaf>,
    /// The request that is answered once all of them have stopped.
    asked: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Deaf {
    id: SocketId,
    /// All that was received has been handled.
    is_quiet: bool,
}

impl Hearing {
    /// Receives nothing from the start on, until `hear`.
    pub fn wait(&mut self) {
        self.waits = true;
    }

    /// Receives nothing on these sockets, of which each is about to stop.
    pub fn deafen(&mut self, number: u64, ids: impl Iterator<Item = SocketId>) {
        self.deaf = ids.map(|id| Deaf { id, is_quiet: false }).collect();
        self.asked = Some(number);
    }

    /// The request that can be answered now.
    pub fn answered(&mut self) -> Option<u64> {
        self.asked.take_if(|_| self.deaf.iter().all(|deaf| deaf.is_quiet))
    }

    pub fn is_deaf(&self, id: SocketId) -> bool {
        self.waits || self.deaf.iter().any(|deaf| deaf.id == id)
    }

    /// Whether no datagram of a client comes through this socket.
    pub fn is_quiet(&self, id: SocketId) -> bool {
        self.deaf.iter().any(|deaf| deaf.id == id && deaf.is_quiet)
    }

    /// The socket has stopped, or was closed. In its place another may come, which is deaf too.
    pub fn stopped(&mut self, id: SocketId) {
        if let Some(deaf) = self.deaf.iter_mut().find(|deaf| deaf.id == id) {
            deaf.is_quiet = true;
        }
    }

    /// Receives again. Returns the sockets that have stopped: the others go on when they do.
    /// `None`: all sockets have.
    pub fn hear(&mut self) -> Option<Vec<SocketId>> {
        let deaf = std::mem::take(&mut self.deaf).into_iter();
        let waited = std::mem::take(&mut self.waits);
        (!waited).then(|| deaf.filter(|deaf| deaf.is_quiet).map(|deaf| deaf.id).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SocketId = SocketId(1);
    const B: SocketId = SocketId(2);

    #[test]
    fn a_request_is_answered_when_all_sockets_have_stopped() {
        let mut hearing = Hearing::default();
        hearing.deafen(7, [A, B].into_iter());
        assert!(hearing.is_deaf(A) && !hearing.is_quiet(A));
        hearing.stopped(A);
        assert_eq!((hearing.answered(), hearing.is_quiet(A)), (None, true));
        hearing.stopped(B);
        assert_eq!((hearing.answered(), hearing.answered()), (Some(7), None));
        assert!(hearing.is_deaf(B));
    }

    #[test]
    fn a_socket_that_has_not_stopped_goes_on_by_itself() {
        let mut hearing = Hearing::default();
        hearing.deafen(7, [A, B].into_iter());
        hearing.stopped(B);
        assert_eq!(hearing.hear(), Some(vec![B]));
        assert!(!hearing.is_deaf(A) && !hearing.is_deaf(B));
    }

    #[test]
    fn who_waits_hears_nothing_until_told() {
        let mut hearing = Hearing::default();
        hearing.wait();
        assert!(hearing.is_deaf(A) && !hearing.is_quiet(A));
        assert_eq!(hearing.hear(), None);
        assert!(!hearing.is_deaf(A));
    }
}
