//! Steps that the operator has written: say something, and expect something.

use crate::health::probe::talk::reply::{Reply, shown};
use crate::model::health_check::Step;

#[derive(Debug)]
pub struct ExchangeTalk<'c> {
    steps: &'c [Step],
    /// The step with the answer that comes next.
    at: usize,
}

impl<'c> ExchangeTalk<'c> {
    pub(super) fn new(steps: &'c [Step]) -> Self {
        Self { steps, at: 0 }
    }

    /// What is said before the next answer.
    pub(super) fn said(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(step) = self.steps.get(self.at) {
            bytes.extend_from_slice(step.send.as_deref().unwrap_or_default());
            if step.expect.is_some() {
                break;
            }
            self.at += 1;
        }
        bytes
    }

    pub(super) fn reply(&mut self, answer: &[u8], ended: bool) -> Reply {
        let Some(expect) = self.steps.get(self.at).and_then(|step| step.expect.as_ref()) else {
            return Reply::Good;
        };
        let Some(taken) = expect.end_in(answer) else {
            let nth = self.at + 1;
            return match ended {
                true => Reply::Bad(format!(
                    "the answer of step {nth} does not have {expect}, but is {}",
                    shown(answer)
                )),
                false => Reply::More,
            };
        };
        self.at += 1;
        let bytes = self.said();
        if self.at >= self.steps.len() && bytes.is_empty() {
            return Reply::Good;
        }
        Reply::Say { taken, bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::health_check::{Expect, Pattern};

    fn step(send: &str, expect: Option<Expect>) -> Step {
        Step { send: (!send.is_empty()).then(|| send.as_bytes().into()), expect }
    }

    fn text(text: &str) -> Option<Expect> {
        Some(Expect::Bytes(text.as_bytes().into()))
    }

    #[test]
    fn a_server_that_speaks_first_is_heard_first() {
        let regex = Some(Expect::Regex(Pattern::read("^220[ -].*\\r\\n").expect("a regex")));
        let steps = [step("", regex), step("EHLO me\r\n", text("250")), step("QUIT\r\n", None)];
        let mut talk = ExchangeTalk::new(&steps);
        assert_eq!(talk.said(), b"");
        assert_eq!(talk.reply(b"220 mail", false), Reply::More);
        let next = talk.reply(b"220 mail\r\n250", false);
        assert_eq!(next, Reply::Say { taken: 10, bytes: b"EHLO me\r\n".into() });
        assert_eq!(talk.reply(b"25", false), Reply::More);
        let last = talk.reply(b"250 hello", false);
        assert_eq!(last, Reply::Say { taken: 3, bytes: b"QUIT\r\n".into() });
        assert_eq!(talk.reply(b" hello", false), Reply::Good);
    }

    #[test]
    fn an_answer_without_what_is_expected_is_shown() {
        let steps = [step("ruok", text("imok"))];
        let mut talk = ExchangeTalk::new(&steps);
        assert_eq!(talk.said(), b"ruok");
        assert_eq!(talk.reply(b"imo", false), Reply::More);
        let Reply::Bad(why) = talk.reply(b"This \0\n", true) else { panic!("it is good") };
        let expected = "the answer of step 1 does not have \"imok\", but is \"This \\x00\\n\"";
        assert_eq!(why, expected);
        assert_eq!(ExchangeTalk::new(&steps).reply(b"imok", true), Reply::Good);
    }
}
