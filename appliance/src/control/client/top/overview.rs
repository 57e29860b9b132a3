//! Draws the overview, and one session that is followed.

use std::collections::VecDeque;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Paragraph, RenderDirection, Sparkline, Wrap};
use serde_json::Value;

use crate::control::client::show::{As, cell, sides};
use crate::control::client::top::model::{Followed, Model};
use crate::control::client::top::panes::Pane;
use crate::control::client::top::style::{BAD, BARS, TITLE, WARNING};

/// A screen with fewer columns has one column of lists.
const WIDE: u16 = 72;

/// The rows of a list that may be shown. The area cuts the rest.
const ROWS: usize = 50;

pub fn draw(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let each = match area.height {
        0..12 => 0,
        12..20 => 2,
        _ => 3,
    };
    let [graphs, lists] =
        area.layout(&Layout::vertical([Constraint::Length(4 * each), Constraint::Min(0)]));
    let titles = [
        ("new", As::Text, "/s"),
        ("sessions and flows", As::Text, ""),
        ("up", As::Bytes, "/s"),
        ("down", As::Bytes, "/s"),
    ];
    let areas = Layout::vertical([Constraint::Length(each); 4]).areas::<4>(graphs);
    for ((title, history), area) in titles.into_iter().zip(&model.history).zip(areas) {
        graph(frame, area, title, history);
    }
    let (wrong, closes) = (wrong(model), closes(model));
    match area.width < WIDE {
        true => {
            let both: Vec<_> = wrong.into_iter().chain(closes).collect();
            frame.render_widget(Paragraph::new(both), lists);
        }
        false => {
            let halves = Layout::horizontal([Constraint::Fill(1); 2]).spacing(2);
            let [left, right] = lists.layout(&halves);
            frame.render_widget(Paragraph::new(wrong), left);
            frame.render_widget(Paragraph::new(closes), right);
        }
    }
}

/// A line of what is now and what was the most, and the history below it.
fn graph(
    frame: &mut Frame<'_>,
    area: Rect,
    (title, form, unit): (&str, As, &str),
    history: &VecDeque<u64>,
) {
    if area.height == 0 {
        return;
    }
    let [about, bars] = area.layout(&Layout::vertical([Constraint::Length(1), Constraint::Min(0)]));
    let shown = |value: Option<u64>| cell(value.map(Value::from).as_ref(), form);
    let seen = history.iter().take(area.width.into()).copied();
    let text = format!(
        "{title}: {}{unit}  (most {}{unit})",
        shown(history.front().copied()),
        shown(seen.clone().max())
    );
    frame.render_widget(Line::styled(text, TITLE), about);
    let bars_of = Sparkline::default()
        .data(seen.collect::<Vec<_>>())
        .direction(RenderDirection::RightToLeft)
        .style(BARS);
    frame.render_widget(bars_of, bars);
}

/// What an on-call person wants to know first.
fn wrong(model: &Model) -> Vec<Line<'static>> {
    let status = &model.status;
    let mut said = Vec::new();
    let refused = status["refused"].as_str().and_then(|why| why.lines().next());
    said.extend(refused.map(|why| format!("configuration refused: {why}")));
    for (field, what) in [
        ("endpoints_down", "endpoints down"),
        ("workers_behind", "workers without the newest table"),
        ("certificates_ending", "certificates ending"),
        ("overrides", "overrides by operators"),
    ] {
        let count = status[field].as_u64().filter(|count| *count > 0);
        said.extend(count.map(|count| format!("{what}: {count}")));
    }
    for backend in &model.views[Pane::Backends as usize].rows {
        let Some(news) = backend["news"].as_str() else { continue };
        said.push(format!("{}: {news}", backend["backend"].as_str().unwrap_or_default()));
    }
    for limit in &model.limits {
        let Some(full) = limit["full"].as_f64().filter(|full| *full >= 0.8) else { continue };
        let of = limit["of"].as_str().map(|of| format!(" of {of}")).unwrap_or_default();
        let name = limit["limit"].as_str().unwrap_or_default();
        said.push(format!("limit {name}{of}: {:.0} % full", full * 100.0));
    }
    let title = if said.is_empty() { "Nothing is known to be wrong" } else { "Wrong or unusual" };
    let said = said.into_iter().take(ROWS).map(|text| Line::styled(clean(&text), BAD));
    std::iter::once(Line::styled(title, TITLE)).chain(said).collect()
}

fn closes(model: &Model) -> Vec<Line<'static>> {
    let head = Line::styled(format!("{:<24} {:>5} {:>7}", "Closes", "now", "hour"), TITLE);
    let rows = model.closes.iter().take(ROWS).map(|of| {
        let word = |field: &str| cell(of.get(field), As::Text);
        Line::raw(format!("{:<24} {:>5} {:>7}", word("reason"), word("latest"), word("count")))
    });
    std::iter::once(head).chain(rows).collect()
}

fn clean(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}

pub fn followed(frame: &mut Frame<'_>, area: Rect, followed: &Followed) {
    let each = if area.height < 12 { 0 } else { 3 };
    let [about, up, down, rest] = area.layout(&Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(each),
        Constraint::Length(each),
        Constraint::Min(0),
    ]));
    let title = match followed.has_ended {
        true => Line::styled(format!("{} has ended; this was its last state", followed.id), BAD),
        false => Line::styled(followed.id.clone(), TITLE),
    };
    frame.render_widget(title, about);
    for ((area, title), rates) in [(up, "up"), (down, "down")].into_iter().zip(&followed.rates) {
        graph(frame, area, (title, As::Bytes, "/s"), rates);
    }
    let (fields, tcp, slow) = sides(&followed.value);
    let slow = slow.map(|slow| Line::styled(slow, WARNING));
    let lines = |text: &str| text.lines().map(|line| Line::raw(line.to_owned())).collect();
    let (fields, tcp): (Vec<_>, Vec<_>) = (lines(&fields), lines(&tcp));
    let shown = |lines: Vec<Line<'static>>| {
        Paragraph::new(Text::from(lines)).scroll((followed.from, 0)).wrap(Wrap { trim: false })
    };
    match area.width < WIDE {
        true => {
            let all = slow.into_iter().chain(fields).chain(tcp).collect();
            frame.render_widget(shown(all), rest);
        }
        false => {
            let halves = Layout::horizontal([Constraint::Fill(1); 2]).spacing(1);
            let [left, right] = rest.layout(&halves);
            frame.render_widget(shown(fields), left);
            frame.render_widget(shown(slow.into_iter().chain(tcp).collect()), right);
        }
    }
}
