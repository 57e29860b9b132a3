//! Makes and reads session tickets, under keys that the next process of an upgrade can be given.
//!
//! rustls has a `Ticketer` too, which never shows its keys. As there, a key makes tickets for 6
//! hours, and reads them for 6 more. A ticket is the key's name, a nonce, and the session's state
//! under AES-256-GCM, with the name as additional data.

use std::fmt;
use std::hint::black_box;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand;
use parking_lot::RwLock;
use rustls::pki_types::UnixTime;
use rustls::server::ProducesTickets;

/// Seconds for which a key makes tickets.
const PERIOD: u64 = 6 * 60 * 60;

/// Bytes of a key's name, and of its secret.
pub const NAME: usize = 16;
pub const SECRET: usize = 32;

/// Name and secret of a key. Nobody sees the secret in a log, and its bytes are overwritten when it
/// is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    pub name: [u8; NAME],
    pub bytes: [u8; SECRET],
}

/// The keys of a listener's tickets: the one that makes them, and the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedKeys {
    pub current: Secret,
    pub previous: Option<Secret>,
    /// When the next key makes tickets, in seconds of Unix time.
    pub next: u64,
}

pub(super) struct Ticketer(RwLock<Keys>);

struct Keys {
    current: Key,
    previous: Option<Key>,
    next: u64,
}

struct Key {
    secret: Secret,
    cipher: RandomizedNonceKey,
}

impl Ticketer {
    /// # Errors
    /// The system has no randomness.
    pub(super) fn new(now: u64) -> Result<Self, Unspecified> {
        let keys = Keys { current: Key::draw()?, previous: None, next: now + PERIOD };
        Ok(Self(RwLock::new(keys)))
    }

    /// With keys of the process before.
    ///
    /// # Errors
    /// The library refuses a key.
    pub(super) fn of(saved: &SavedKeys, now: u64) -> Result<Self, Unspecified> {
        let previous = saved.previous.clone().map(Key::new).transpose()?;
        // A clock that was wrong must not keep a key for ever.
        let next = saved.next.min(now + PERIOD);
        let keys = Keys { current: Key::new(saved.current.clone())?, previous, next };
        Ok(Self(RwLock::new(keys)))
    }

    pub(super) fn saved(&self) -> SavedKeys {
        let keys = self.0.read();
        SavedKeys {
            current: keys.current.secret.clone(),
            previous: keys.previous.as_ref().map(|key| key.secret.clone()),
            next: keys.next,
        }
    }

    /// Draws the next key, if it is time. Without randomness the key stays.
    fn turn(&self, now: u64) {
        if now < self.0.read().next {
            return;
        }
        let mut keys = self.0.write();
        if now >= keys.next
            && let Ok(next) = Key::draw()
        {
            // Nobody needs the key before if none was wanted for so long.
            let is_old = now >= keys.next + PERIOD;
            let before = std::mem::replace(&mut keys.current, next);
            keys.previous = (!is_old).then_some(before);
            keys.next = now + PERIOD;
        }
    }

    fn encrypt_at(&self, plain: &[u8], now: u64) -> Option<Vec<u8>> {
        self.turn(now);
        self.0.read().current.seal(plain)
    }

    fn decrypt_at(&self, ticket: &[u8], now: u64) -> Option<Vec<u8>> {
        self.turn(now);
        let (name, rest) = ticket.split_first_chunk::<NAME>()?;
        let keys = self.0.read();
        let key = [Some(&keys.current), keys.previous.as_ref()].into_iter().flatten();
        key.filter(|key| key.secret.name == *name).find_map(|key| key.open(rest))
    }
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(2 * PERIOD).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.encrypt_at(plain, UnixTime::now().as_secs())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.decrypt_at(ticket, UnixTime::now().as_secs())
    }
}

impl Key {
    fn draw() -> Result<Self, Unspecified> {
        let mut secret = Secret { name: [0; NAME], bytes: [0; SECRET] };
        rand::fill(&mut secret.name)?;
        rand::fill(&mut secret.bytes)?;
        Self::new(secret)
    }

    fn new(secret: Secret) -> Result<Self, Unspecified> {
        let cipher = RandomizedNonceKey::new(&AES_256_GCM, &secret.bytes)?;
        Ok(Self { secret, cipher })
    }

    fn seal(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut sealed = plain.to_vec();
        let nonce =
            self.cipher.seal_in_place_append_tag(Aad::from(self.secret.name), &mut sealed).ok()?;
        Some([&self.secret.name[..], nonce.as_ref(), &sealed].concat())
    }

    fn open(&self, rest: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = self.cipher.open_in_place(nonce, Aad::from(self.secret.name), &mut sealed);
        let len = plain.ok()?.len();
        sealed.truncate(len);
        Some(sealed)
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.bytes.fill(0);
        // Otherwise the compiler may leave out what nobody reads.
        black_box(&self.bytes);
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key of session tickets")
    }
}

impl fmt::Debug for Ticketer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticketer")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    #[test]
    fn a_ticket_is_read_for_twelve_hours_at_the_most() {
        let ticketer = Ticketer::new(NOW).expect("randomness");
        let ticket = ticketer.encrypt_at(b"state", NOW).expect("a ticket");
        let read = |at| ticketer.decrypt_at(&ticket, at);
        assert_eq!(read(NOW + PERIOD - 1).as_deref(), Some(&b"state"[..]));
        assert_eq!(read(NOW + PERIOD).as_deref(), Some(&b"state"[..]), "the key before");
        let other = ticketer.encrypt_at(b"state", NOW + PERIOD).expect("a ticket");
        assert_ne!(other[..NAME], ticket[..NAME], "a new key");
        assert_eq!(read(NOW + 2 * PERIOD), None);
    }

    #[test]
    fn a_key_that_nobody_needed_is_forgotten() {
        let ticketer = Ticketer::new(NOW).expect("randomness");
        let ticket = ticketer.encrypt_at(b"state", NOW).expect("a ticket");
        assert_eq!(ticketer.decrypt_at(&ticket, NOW + 2 * PERIOD), None);
    }

    #[test]
    fn another_process_reads_tickets_with_keys_that_it_was_given() {
        let before = Ticketer::new(NOW).expect("randomness");
        let old = before.encrypt_at(b"old", NOW).expect("a ticket");
        let new = before.encrypt_at(b"new", NOW + PERIOD).expect("a ticket");
        let saved = before.saved();
        assert!(!format!("{saved:?} {before:?}").contains("bytes"), "keys are secret");
        let after = Ticketer::of(&saved, NOW + PERIOD).expect("keys");
        assert_eq!(after.saved(), saved);
        assert_eq!(after.decrypt_at(&old, NOW + PERIOD).as_deref(), Some(&b"old"[..]));
        assert_eq!(after.decrypt_at(&new, NOW + PERIOD).as_deref(), Some(&b"new"[..]));
        let stranger = Ticketer::new(NOW).expect("randomness");
        assert_eq!(stranger.decrypt_at(&old, NOW), None);
    }

    #[test]
    fn a_changed_ticket_is_no_ticket() {
        let ticketer = Ticketer::new(NOW).expect("randomness");
        let ticket = ticketer.encrypt_at(b"state", NOW).expect("a ticket");
        for at in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert_eq!(ticketer.decrypt_at(&changed, NOW), None, "byte {at}");
            assert_eq!(ticketer.decrypt_at(&ticket[..at], NOW), None, "{at} bytes");
        }
    }
}
