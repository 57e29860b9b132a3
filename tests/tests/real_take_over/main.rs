//! `ringway run --take-over` beside an old process that dies, hangs or refuses at each step of the
//! hand-over. If the old process has died and the new one has all listening sockets, the new one
//! serves on alone. If the old process lives, the new one leaves everything to it.

mod old;
mod play;

use std::time::Duration;

use play::{Play, asks};
use ringway_tests::real::{wait_for, wait_until};
use serde::Deserialize;

/// Only a test that hangs takes so long.
const DEADLINE: Duration = Duration::from_secs(60);

/// What the old process does. It has one worker, and the new one has two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Act {
    DiesAfterOffer,
    DiesAmidSockets,
    DiesAfterSockets,
    DiesBeforeOverrides,
    /// It has said what operators have said, and says no keys of tickets.
    DiesBeforeTickets,
    DiesBeforeYours,
    DiesAfterFlows,
    DiesAfterFigures,
    /// It hears no answer to its last word any more, and dies.
    DiesAfterYours,
    /// It hears no answer to its last word any more, and goes on serving.
    IsDeafToMine,
    /// It hears the answer to its last word, and dies.
    DiesAfterMine,
    RefusesLateAndDies,
    RefusesLate,
    HangsUp,
    SaysNothing,
    /// It hears no answer about a session any more, and dies.
    DiesAfterSessions,
    /// It hears no answer about a session any more, and goes on with it.
    IsDeafToSessions,
}

use Act::{
    DiesAfterFigures, DiesAfterFlows, DiesAfterMine, DiesAfterOffer, DiesAfterSessions,
    DiesAfterSockets, DiesAfterYours, DiesAmidSockets, DiesBeforeOverrides, DiesBeforeTickets,
    DiesBeforeYours, HangsUp, IsDeafToMine, IsDeafToSessions, RefusesLate, RefusesLateAndDies,
    SaysNothing,
};

#[test]
fn without_all_listening_sockets_the_new_process_ends() {
    for act in [DiesAfterOffer, DiesAmidSockets] {
        Play::begin(act).ends_with("the other process has ended, or has hung up");
    }
}

#[test]
fn with_all_listening_sockets_the_new_process_goes_on_alone() {
    for act in [DiesAfterSockets, DiesBeforeOverrides, DiesBeforeYours, DiesAfterFlows] {
        let mut play = Play::begin(act);
        play.serves_alone();
        let said = play.said();
        assert!(said.contains("this process goes on alone"), "{act:?}: {said}");
        let lost = said.contains("has died before it had said all");
        assert_eq!(lost, act == DiesBeforeOverrides, "{act:?}: {said}");
    }
}

/// What operators had said holds, though the keys of tickets have not come.
#[test]
fn what_had_come_before_the_old_process_died_holds() {
    let mut play = Play::begin(DiesBeforeTickets);
    let all = wait_for("the new process answers", || play.asks(&["overrides"]));
    assert_eq!((&all[0]["backend"], &all[0]["weight"]), (&"tcp".into(), &5.into()), "{all}");
    assert!(play.said().contains("has died before it had said all"), "{}", play.said());
    play.serves_alone();
}

/// The flow whose last figures had come goes on from the same port, whether or not the old process
/// has said its last word, and heard the answer.
#[test]
fn a_flow_that_had_settled_goes_on_alone_too() {
    for act in [DiesAfterFigures, DiesAfterYours, DiesAfterMine] {
        let mut play = Play::begin(act);
        let said = if act == DiesAfterMine { "has taken over" } else { "goes on alone" };
        wait_until("the new process is alone", || play.said().contains(said));
        let port = std::fs::read_to_string(play.folder.file("port")).expect("it is written");
        assert_eq!(play.hears(&play.player, "word"), (port, "word".to_owned()), "{act:?}");
        play.serves_alone();
    }
}

#[test]
fn a_late_refusal_leaves_all_to_the_old_process() {
    let mut play = Play::begin(RefusesLate);
    play.ends_with("the other process refuses: on second thoughts");
    play.is_left_to_the_old_one();
    // A refusal counts, whatever the old process does then: perhaps an operator has ended it.
    Play::begin(RefusesLateAndDies).ends_with("the other process refuses: on second thoughts");
}

#[test]
fn an_old_process_that_hangs_up_and_lives_has_all() {
    let mut play = Play::begin(HangsUp);
    play.ends_with("the other process has ended, or has hung up");
    play.is_left_to_the_old_one();
}

/// The new process can't give the last answer, and the old one lives.
#[test]
fn an_old_process_that_hears_no_answer_and_lives_has_all() {
    let mut play = Play::begin(IsDeafToMine);
    play.ends_with("the other process has ended");
    play.is_left_to_the_old_one();
}

/// `tests/run --long` runs it.
#[test]
#[ignore = "it takes half a minute"]
fn an_old_process_that_is_silent_for_too_long_has_all() {
    let mut play = Play::begin(SaysNothing);
    play.ends_with("the other process has said nothing for 25 s");
    play.is_left_to_the_old_one();
}

/// The new process can't say that it has adopted the session. If the old one has died, the session
/// goes on in the new one. If the old one lives, the session is the old one's.
#[test]
fn a_session_is_never_of_both_and_never_of_none() {
    for act in [DiesAfterSessions, IsDeafToSessions] {
        let mut play = Play::begin(act);
        let status = wait_for("the new process answers", || play.asks(&["status"]));
        assert_eq!(status["upgrade"]["generation"], 4, "{status}");
        asks(&play.client, b"first");
        asks(&play.client, b"again");
        let count = || play.asks(&["sessions"]).map(|all| all.as_array().map_or(0, Vec::len));
        let wanted = usize::from(act == DiesAfterSessions);
        wait_until("it is clear whose the session is", || count() == Some(wanted));
        assert_eq!(play.old.try_wait().expect("its status").is_some(), wanted == 1, "{act:?}");
    }
}
