//! Decides for one direction of a session when to move bytes, how, and when the direction is over.
//!
//! The ring holds the bytes. A half sees the report of each `Move`, and decides from it. Small
//! exchanges are copied. A long series of small exchanges becomes a stream, which the ring carries
//! alone. Bulk is spliced. A direction that often brings more than its share of a turn waits until
//! the other directions have had their share.

use crate::contract::{Mode, Op, Side, Stop};

/// The maximum number of bytes that one copying `Move` reads. A direction that reads so many is
/// bulk.
const COPY_BUDGET: u32 = 64 * 1024;
/// A direction is also bulk if it brought this many bytes in each of `BIG_WAKES` wake-ups in a row.
const BIG: u32 = 32 * 1024;
const BIG_WAKES: u8 = 3;
/// A bulk direction turns back to copying if it brought fewer bytes than this in each of
/// `SMALL_WAKES` wake-ups in a row. Copying is cheaper up to some 16 KiB a wake-up, and splicing is
/// cheaper above 32 KiB. Between these values the two hardly differ.
const SMALL: u32 = 8 * 1024;
const SMALL_WAKES: u8 = 8;
/// A copying direction is busy with small messages if it brought fewer bytes than `SMALL` in each
/// of this many wake-ups in a row. The direction then streams until a message is larger.
const STREAM_WAKES: u8 = 8;
/// Each stream that ends before it repaid its beginning doubles the wake-ups before the next
/// stream, up to this number.
const MOST_STREAM_WAKES: u8 = 128;

#[derive(Debug)]
pub struct Half {
    from: Side,
    mode: Mode,
    /// Bytes may wait to be read: a `Ready` came, and no `Move` followed yet.
    news: bool,
    /// The destination took no more bytes. Only a `Ready` of the destination moves this half on.
    blocked: bool,
    /// The last `Move` stopped because the destination was blocked, whatever events came since.
    stalled: bool,
    /// A `Move` is under way, or waits for its next turn.
    queued: bool,
    /// The ring receives and sends by itself, until it reports the end of the stream.
    streaming: bool,
    /// The source has announced its end.
    ending: bool,
    /// The source has ended, and the destination took all bytes before that end.
    ended: bool,
    /// No byte can be moved any more, or no byte is left to move.
    dead: bool,
    big_wakes: u8,
    /// Small wake-ups in a row. While the half streams: arrivals.
    small_wakes: u8,
    /// Small wake-ups before the half streams.
    stream_after: u8,
    /// Bytes read since the source last ran dry.
    wake_bytes: u32,
    held: u32,
    /// Bytes that the destination took.
    pub bytes: u64,
    /// The value of `bytes` when the other direction last carried bytes. The bytes since then are
    /// one run.
    run_from: u64,
    /// The source wakes nobody for fewer bytes. 0: the source wakes for any byte.
    mark: u32,
    /// When the destination last took a byte, or when it became blocked.
    progress: u64,
}

/// What a half wants after a `Move`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing, until there is news.
    Wait,
    /// Another `Move` at once: see [`Half::start`].
    Again,
    /// Another `Move` in the next turn, after all others.
    Later,
    /// Nothing, but the half could stream: see [`Half::stream`].
    Stream,
    /// The end of the stream: see [`Half::unstream`].
    Unstream,
    /// The half is over. A shutdown must tell the destination.
    Ended,
}

impl Half {
    pub fn new(from: Side) -> Self {
        Self {
            from,
            mode: Mode::Copy,
            news: false,
            blocked: false,
            stalled: false,
            queued: false,
            streaming: false,
            ending: false,
            ended: false,
            dead: false,
            big_wakes: 0,
            small_wakes: 0,
            stream_after: STREAM_WAKES,
            wake_bytes: 0,
            held: 0,
            bytes: 0,
            run_from: 0,
            mark: 0,
            progress: 0,
        }
    }

    /// A direction that another process has carried so far.
    pub fn taken_over(from: Side, bytes: u64, ended: bool) -> Self {
        Self { bytes, run_from: bytes, ended, ..Self::new(from) }
    }

    pub fn ended(&self) -> bool {
        self.ended
    }

    /// The source has said that it ends.
    pub fn is_ending(&self) -> bool {
        self.ending || self.ended
    }

    /// Nothing is under way, and no byte is in the gateway. What the source has is still there.
    pub fn is_still(&self) -> bool {
        !self.queued && !self.streaming && self.held == 0 && !self.dead && self.mark == 0
    }

    /// A `Move` that waits for its turn is not to come.
    pub fn put_off(&mut self) {
        if std::mem::take(&mut self.queued) {
            self.news = true;
        }
    }

    /// Returns the `Move` that only delivers what is held, if nothing is under way and the
    /// destination takes bytes.
    pub fn deliver_held(&mut self) -> Option<Op> {
        let waits = self.queued || self.streaming || self.blocked;
        if waits || self.held == 0 || self.is_over() {
            return None;
        }
        self.queued = true;
        Some(Op::Move { from: self.from, mode: self.mode, budget: 0, to_eof: self.ending })
    }

    /// Bytes taken from the source that the destination has not taken yet.
    pub fn held(&self) -> u32 {
        self.held
    }

    /// No byte of the source was taken.
    pub fn has_brought_nothing(&self) -> bool {
        self.bytes == 0 && self.held == 0 && !self.streaming
    }

    /// A `Move` is under way, or waits for its next turn.
    pub fn queued(&self) -> bool {
        self.queued
    }

    /// The ring receives and sends by itself.
    pub fn streaming(&self) -> bool {
        self.streaming
    }

    /// The destination takes no more bytes.
    pub fn blocked(&self) -> bool {
        self.blocked
    }

    /// Since when the destination has not taken bytes that wait for it.
    pub fn stalled_since(&self) -> Option<u64> {
        self.stalled.then_some(self.progress)
    }

    /// The source has bytes or an end to read.
    pub fn source_ready(&mut self, ending: bool) {
        self.news = true;
        self.ending |= ending;
    }

    /// The destination takes bytes again.
    pub fn destination_ready(&mut self) {
        self.blocked = false;
    }

    /// Returns the `Move` to give now, if there is a reason for one and none is under way.
    /// `turn_bytes` bounds the bytes that one direction moves before the others have their turn.
    pub fn start(&mut self, turn_bytes: u32) -> Option<Op> {
        let waits = self.queued || self.streaming || self.blocked;
        if waits || self.ended || self.dead || !self.news {
            return None;
        }
        self.queued = true;
        Some(self.move_op(turn_bytes))
    }

    /// Stops all moves: one side has failed, or has nothing left to deliver.
    pub fn die(&mut self) {
        self.dead = true;
        self.stalled = false;
    }

    /// No byte will be moved any more.
    pub fn is_over(&self) -> bool {
        self.ended || self.dead
    }

    /// A `Ready` came, and its bytes were not moved yet but can be. A stream moves all bytes that
    /// it sees.
    pub fn has_work(&self) -> bool {
        !self.is_over() && !self.blocked && !self.streaming && (self.queued || self.news)
    }

    /// Returns the `Move` of a half that answered `Next::Later`.
    pub fn resume(&mut self, turn_bytes: u32) -> Option<Op> {
        (self.queued && !self.is_over()).then(|| self.move_op(turn_bytes))
    }

    /// Returns the last `Move` from a source in a session that is over, which delivers the bytes
    /// that the source sent before. `None`: that `Move` is under way, or the half is over.
    pub fn flush(&mut self, turn_bytes: u32) -> Option<Op> {
        self.ending = true;
        // A `Move` that is under way may stop early, because it did not know of the end.
        self.news |= self.queued;
        if self.queued || self.is_over() || self.blocked {
            return None;
        }
        if self.streaming {
            return Some(self.unstream());
        }
        self.queued = true;
        Some(self.move_op(turn_bytes))
    }

    fn move_op(&mut self, turn_bytes: u32) -> Op {
        self.news = false;
        let budget = match self.mode {
            Mode::Copy => COPY_BUDGET.min(turn_bytes),
            // Twice the mark: the bytes of a wake-up are then taken in one turn.
            Mode::Splice => turn_bytes.max(2 * self.mark),
        };
        Op::Move { from: self.from, mode: self.mode, budget, to_eof: self.ending }
    }

    /// Leaves this direction to the ring.
    pub fn stream(&mut self) -> Op {
        self.streaming = true;
        self.small_wakes = 0;
        Op::Stream { from: self.from }
    }

    /// Asks the ring to end the stream. A last `Moved` will report that end.
    pub fn unstream(&self) -> Op {
        Op::Unstream { from: self.from }
    }

    /// Takes in the result of a `Move`, or an arrival of a stream. The session handles
    /// `Stop::Failed`.
    pub fn moved(&mut self, now: u64, read: u32, sent: u32, held: u32, stop: Stop) -> Next {
        self.queued = false;
        self.held = held;
        self.bytes += u64::from(sent);
        self.wake_bytes = self.wake_bytes.saturating_add(read);
        let stalled = std::mem::replace(&mut self.stalled, stop == Stop::Blocked);
        if sent > 0 || self.stalled && !stalled {
            self.progress = now;
        }
        let was_stream = self.streaming;
        if was_stream {
            if stop == Stop::Drained {
                self.small_wakes = self.small_wakes.saturating_add(1);
                return if read < SMALL { Next::Wait } else { Next::Unstream };
            }
            self.end_stream();
        }
        match stop {
            Stop::Drained => {
                self.adapt();
                match self.mode {
                    _ if self.news => Next::Again,
                    Mode::Copy if self.is_busy() => Next::Stream,
                    Mode::Copy | Mode::Splice => Next::Wait,
                }
            }
            Stop::Blocked => {
                self.blocked = true;
                self.news = true;
                Next::Wait
            }
            Stop::Budget => {
                self.news = true;
                if was_stream {
                    return Next::Again;
                }
                if self.mode == Mode::Copy && self.wake_bytes >= COPY_BUDGET {
                    self.mode = Mode::Splice;
                    self.small_wakes = 0;
                    return Next::Again;
                }
                self.queued = true;
                Next::Later
            }
            Stop::Eof => {
                self.ended = true;
                Next::Ended
            }
            Stop::Failed { .. } => Next::Wait,
        }
    }

    /// So many bytes have gone one way that waiting for the next bytes pays, and pacing them does
    /// not. `u32::MAX`: never.
    pub fn is_bulk(&self, bulk_bytes: u32) -> bool {
        let run = self.bytes - self.run_from;
        self.mode == Mode::Splice
            && !self.ending
            && run >= u64::from(bulk_bytes)
            && bulk_bytes < u32::MAX
    }

    pub fn mark(&self) -> u32 {
        self.mark
    }

    pub fn set_mark(&mut self, mark: u32) {
        self.mark = mark;
    }

    /// Begins a new run: the other direction has carried bytes, or this direction has paused.
    pub fn end_run(&mut self) {
        self.run_from = self.bytes;
    }

    /// Whether this direction is busy with small messages.
    fn is_busy(&self) -> bool {
        self.small_wakes >= self.stream_after && !self.ending && self.mark == 0
    }

    /// The ring has given this direction back. A direction that streams for a few arrivals at a
    /// time pays more for the change than it gains.
    fn end_stream(&mut self) {
        self.streaming = false;
        self.stream_after = match self.small_wakes >= self.stream_after {
            true => STREAM_WAKES,
            false => self.stream_after.saturating_mul(2).min(MOST_STREAM_WAKES),
        };
        self.small_wakes = 0;
        self.big_wakes = 0;
        self.wake_bytes = 0;
    }

    /// The source ran dry: counts the wake-up as a big or a small one.
    fn adapt(&mut self) {
        match self.mode {
            Mode::Copy if self.wake_bytes >= BIG => {
                self.small_wakes = 0;
                self.big_wakes += 1;
                if self.big_wakes == BIG_WAKES {
                    self.mode = Mode::Splice;
                    self.small_wakes = 0;
                }
            }
            Mode::Copy => {
                self.big_wakes = 0;
                self.small_wakes = match self.wake_bytes {
                    // A wake-up without a byte says nothing.
                    0 => self.small_wakes,
                    1..SMALL => self.small_wakes.saturating_add(1),
                    SMALL.. => 0,
                };
            }
            Mode::Splice if self.wake_bytes < SMALL => {
                self.small_wakes += 1;
                if self.small_wakes == SMALL_WAKES {
                    self.mode = Mode::Copy;
                    self.small_wakes = 0;
                    self.big_wakes = 0;
                }
            }
            Mode::Splice => self.small_wakes = 0,
        }
        self.wake_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: u32 = 1 << 20;

    fn mode(op: Option<Op>) -> Mode {
        match op {
            Some(Op::Move { mode, .. }) => mode,
            other => panic!("no move: {other:?}"),
        }
    }

    fn wake(half: &mut Half, bytes: u32) -> Mode {
        half.source_ready(false);
        let mode = mode(half.start(TURN));
        assert_eq!(half.moved(1, bytes, bytes, 0, Stop::Drained), Next::Wait);
        mode
    }

    #[test]
    fn bulk_turns_to_splice_and_back() {
        let mut half = Half::new(Side::Client);
        for _ in 0..3 {
            assert_eq!(wake(&mut half, BIG), Mode::Copy);
        }
        for _ in 0..8 {
            assert_eq!(wake(&mut half, SMALL - 1), Mode::Splice);
        }
        assert_eq!(wake(&mut half, 1), Mode::Copy);
    }

    #[test]
    fn small_wakes_between_keep_it_copying() {
        let mut half = Half::new(Side::Client);
        for _ in 0..10 {
            assert_eq!(wake(&mut half, BIG), Mode::Copy);
            assert_eq!(wake(&mut half, BIG), Mode::Copy);
            assert_eq!(wake(&mut half, 100), Mode::Copy);
        }
    }

    /// Makes a small wake-up, and returns what the half wants then.
    fn small(half: &mut Half) -> Next {
        half.source_ready(false);
        assert_eq!(mode(half.start(TURN)), Mode::Copy);
        half.moved(1, 64, 64, 0, Stop::Drained)
    }

    fn busy() -> Half {
        let mut half = Half::new(Side::Client);
        while small(&mut half) != Next::Stream {}
        assert_eq!(half.stream(), Op::Stream { from: Side::Client });
        half
    }

    #[test]
    fn a_series_of_small_messages_streams_until_one_is_large() {
        let mut half = Half::new(Side::Client);
        for _ in 1..STREAM_WAKES {
            assert_eq!(small(&mut half), Next::Wait);
        }
        assert_eq!(wake(&mut half, SMALL), Mode::Copy);
        for _ in 1..STREAM_WAKES {
            assert_eq!(small(&mut half), Next::Wait);
        }
        assert_eq!(small(&mut half), Next::Stream);
        half.stream();
        half.source_ready(false);
        assert_eq!(half.start(TURN), None);
        assert_eq!(half.moved(1, 64, 64, 0, Stop::Drained), Next::Wait);
        assert_eq!(half.moved(1, SMALL, SMALL, 0, Stop::Drained), Next::Unstream);
        assert_eq!(half.moved(1, 0, 0, 0, Stop::Budget), Next::Again);
        assert_eq!(mode(half.start(TURN)), Mode::Copy);
        assert_eq!(half.bytes, 64 * 16 + 2 * u64::from(SMALL));
    }

    #[test]
    fn streams_that_end_early_are_begun_less_and_less_often() {
        let mut half = busy();
        let mut waited = Vec::new();
        for _ in 0..6 {
            assert_eq!(half.moved(1, 0, 0, 0, Stop::Budget), Next::Again);
            let again = (1..).find(|_| small(&mut half) == Next::Stream);
            waited.extend(again);
            half.stream();
        }
        assert_eq!(waited, [16, 32, 64, 128, 128, 128]);
        for _ in 0..MOST_STREAM_WAKES {
            half.moved(1, 64, 64, 0, Stop::Drained);
        }
        half.moved(1, 0, 0, 0, Stop::Budget);
        assert_eq!((1..).find(|_| small(&mut half) == Next::Stream), Some(8));
    }

    #[test]
    fn a_last_look_at_a_direction_that_streams_has_it_back_first() {
        let mut half = busy();
        assert_eq!(half.flush(TURN), Some(Op::Unstream { from: Side::Client }));
        assert_eq!(half.moved(1, 10, 10, 0, Stop::Drained), Next::Wait);
        assert_eq!(half.moved(1, 0, 0, 0, Stop::Budget), Next::Again);
        assert!(matches!(half.start(TURN), Some(Op::Move { to_eof: true, .. })));
    }

    #[test]
    fn a_full_copy_budget_splices_in_the_same_turn_and_then_waits_for_the_next() {
        let mut half = Half::new(Side::Client);
        half.source_ready(false);
        assert_eq!(mode(half.start(TURN)), Mode::Copy);
        assert_eq!(half.moved(1, COPY_BUDGET, COPY_BUDGET, 0, Stop::Budget), Next::Again);
        assert_eq!(mode(half.start(TURN)), Mode::Splice);
        assert_eq!(half.moved(1, TURN, TURN, 0, Stop::Budget), Next::Later);
        assert_eq!(half.start(TURN), None);
        assert_eq!(mode(half.resume(TURN)), Mode::Splice);
    }

    #[test]
    fn news_during_a_move_is_not_lost() {
        let mut half = Half::new(Side::Client);
        half.source_ready(false);
        assert!(half.start(TURN).is_some());
        half.source_ready(true);
        assert_eq!(half.start(TURN), None);
        assert_eq!(half.moved(1, 10, 10, 0, Stop::Drained), Next::Again);
        assert!(matches!(half.start(TURN), Some(Op::Move { to_eof: true, .. })));
    }

    #[test]
    fn blocked_waits_for_the_destination_alone() {
        let mut half = Half::new(Side::Client);
        half.source_ready(false);
        assert!(half.start(TURN).is_some());
        assert_eq!(half.moved(7, 10, 4, 6, Stop::Blocked), Next::Wait);
        assert_eq!(half.stalled_since(), Some(7));
        half.source_ready(false);
        assert_eq!(half.start(TURN), None);
        half.destination_ready();
        assert!(half.start(TURN).is_some());
        assert_eq!(half.moved(9, 0, 0, 6, Stop::Blocked), Next::Wait);
        assert_eq!(half.stalled_since(), Some(7), "no byte was taken since");
    }
}
