//! The line of an agent, as HAProxy's `agent-check` has it: words such as `up`, `drain` or `75%`.

use crate::health::probe::talk::reply::{Reply, shown};

/// The largest share that an agent can ask for, in percent.
const MOST: u16 = 1_000;

/// What the first line of the answer says.
pub(super) fn reply(answer: &[u8], ended: bool) -> Reply {
    let end = answer.iter().position(|byte| matches!(byte, b'\n' | b'\0'));
    let line = match end {
        Some(end) => &answer[..end],
        None if ended => answer,
        None => return Reply::More,
    };
    let (words, reason) = match line.iter().position(|byte| *byte == b'#') {
        Some(at) => (&line[..at], Some(line[at + 1..].trim_ascii())),
        None => (line, None),
    };
    let separates = |byte: &u8| byte.is_ascii_whitespace() || *byte == b',';
    let words = words.split(separates).filter(|word| !word.is_empty());
    let (mut share, mut is_out) = (None, false);
    for word in words {
        match word.to_ascii_lowercase().as_slice() {
            b"up" | b"ready" => share = share.or(Some(100)),
            b"drain" | b"maint" => is_out = true,
            b"down" | b"failed" | b"fail" | b"stopped" => {
                let reason = reason.map(|reason| format!(": {}", shown(reason)));
                let word = word.escape_ascii();
                return Reply::Bad(format!("it says {word}{}", reason.unwrap_or_default()));
            }
            [number @ .., b'%'] => match percent(number) {
                Some(percent) => share = Some(percent),
                None => return Reply::Bad(format!("{} is no share", shown(word))),
            },
            // How many connections HAProxy may have. Ringway has `max_sessions`.
            word if word.starts_with(b"maxconn:") => {}
            _ => return Reply::Bad(format!("{} is no word of an agent", shown(word))),
        }
    }
    match share {
        _ if is_out => Reply::Share(0),
        Some(share) => Reply::Share(share),
        None => Reply::Bad(format!("it says nothing: {}", shown(line))),
    }
}

fn percent(digits: &[u8]) -> Option<u16> {
    let number = str::from_utf8(digits).ok()?.parse::<u16>().ok()?;
    (number <= MOST && !digits.starts_with(b"+")).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_an_agent() {
        for (line, share) in [
            ("up\n", 100),
            ("ready\r\n", 100),
            ("75%\n", 75),
            ("up 50%\n", 50),
            ("50%,up\n", 50),
            ("UP, 200%\n", 200),
            ("0%\n", 0),
            ("drain\n", 0),
            ("maint 75% # for an hour\n", 0),
            ("up maxconn:30\n", 100),
        ] {
            assert_eq!(reply(line.as_bytes(), false), Reply::Share(share), "{line}");
            let unended = line.trim_end().as_bytes();
            assert_eq!(reply(unended, true), Reply::Share(share), "{line}");
            assert_eq!(reply(unended, false), Reply::More, "{line}");
        }
        for (line, why) in [
            ("down\n", "it says down"),
            ("stopped # disk full\n", "it says stopped: \"disk full\""),
            ("up failed\n", "it says failed"),
            ("\n", "it says nothing: \"\""),
            ("9999%\n", "\"9999%\" is no share"),
            ("+5%\n", "\"+5%\" is no share"),
            ("HTTP/1.1 200\n", "\"HTTP/1.1\" is no word of an agent"),
        ] {
            assert_eq!(reply(line.as_bytes(), false), Reply::bad(why), "{line}");
        }
    }
}
