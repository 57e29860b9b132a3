//! The open pages that get a snapshot each second.
//!
//! A snapshot is made once for all viewers. A viewer holds at most one snapshot that it has not
//! read. A viewer that does not read for some seconds is dropped, so slow viewers cost no memory.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::body::Bytes;
use hyper::body::{Body, Frame};
use parking_lot::Mutex;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, Receiver, Sender};

/// The most viewers at a time.
pub const MOST: usize = 16;

/// A viewer that misses as many snapshots in a row is dropped.
const MISSED: u32 = 10;

/// Whether a connection has a viewer. Other connections have a time to end.
#[derive(Clone, Debug, Default)]
pub struct Seat(Arc<AtomicBool>);

impl Seat {
    pub fn is_taken(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Viewer {
    sender: Sender<Bytes>,
    seat: Seat,
    missed: u32,
}

#[derive(Debug, Default)]
pub struct Viewers(Mutex<Vec<Viewer>>);

impl Viewers {
    /// `None` if there are too many viewers.
    pub fn add(&self, seat: Seat) -> Option<Snapshots> {
        let mut viewers = self.0.lock();
        viewers.retain(|viewer| !viewer.sender.is_closed());
        if viewers.len() >= MOST {
            return None;
        }
        let (sender, receiver) = mpsc::channel(1);
        seat.0.store(true, Ordering::Relaxed);
        viewers.push(Viewer { sender, seat, missed: 0 });
        Some(Snapshots(receiver))
    }

    /// Whether nobody views, so no snapshot is needed.
    pub fn is_empty(&self) -> bool {
        let mut viewers = self.0.lock();
        viewers.retain(|viewer| !viewer.sender.is_closed());
        viewers.is_empty()
    }

    pub fn send(&self, snapshot: &Bytes) {
        self.0.lock().retain_mut(|viewer| match viewer.sender.try_send(snapshot.clone()) {
            Ok(()) => {
                viewer.missed = 0;
                true
            }
            Err(TrySendError::Closed(_)) => false,
            Err(TrySendError::Full(_)) => {
                viewer.missed += 1;
                let stays = viewer.missed < MISSED;
                viewer.seat.0.store(stays, Ordering::Relaxed);
                stays
            }
        });
    }
}

/// The body of the answer to a viewer. It ends when the viewer is dropped.
pub struct Snapshots(Receiver<Bytes>);

impl Body for Snapshots {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn viewers_are_bounded_and_a_slow_one_is_dropped() {
        let viewers = Viewers::default();
        assert!(viewers.is_empty());
        let mut all: Vec<_> = (0..MOST).filter_map(|_| viewers.add(Seat::default())).collect();
        assert_eq!(all.len(), MOST);
        assert!(viewers.add(Seat::default()).is_none(), "one too many");
        all.pop();
        let slow = Seat::default();
        let mut kept = viewers.add(slow.clone()).expect("the place of the one that has gone");
        let snapshot = Bytes::from_static(b"data: {}\n\n");
        for _ in 0..MISSED {
            assert!(slow.is_taken());
            viewers.send(&snapshot);
            for other in &mut all {
                assert_eq!(other.0.try_recv().ok().as_ref(), Some(&snapshot));
            }
        }
        viewers.send(&snapshot);
        assert!(!slow.is_taken());
        assert!(kept.0.try_recv().is_ok() && kept.0.try_recv().is_err(), "one was kept, no more");
        assert_eq!(viewers.0.lock().len(), MOST - 1);
        drop(all);
        assert!(viewers.is_empty());
    }
}
