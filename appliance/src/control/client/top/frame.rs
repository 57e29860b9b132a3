//! Draws what the model knows.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row, Table, Wrap};
use serde_json::Value;

use crate::control::client::show::{As, cell};
use crate::control::client::table::{cut, is_number, widths};
use crate::control::client::top::keys::HELP;
use crate::control::client::top::model::{Mode, Model, View};
use crate::control::client::top::overview;
use crate::control::client::top::panes::{Column, Pane, cells};
use crate::control::client::top::style::{BAD, GOOD, MARKED, TITLE, WARNING};

/// Between columns.
const GAP: u16 = 1;

/// The lines below a list that show a text of the selected row whole.
const SAID: u16 = 3;

pub fn draw(frame: &mut Frame<'_>, model: &mut Model) {
    let line = Constraint::Length(1);
    let [head, tabs, body, foot] =
        frame.area().layout(&Layout::vertical([line, line, Constraint::Min(0), line]));
    frame.render_widget(header(model), head);
    frame.render_widget(names(model.pane, tabs.width), tabs);
    match (&model.followed, model.pane) {
        (Some(followed), _) => overview::followed(frame, body, followed),
        (None, Pane::Overview) => overview::draw(frame, body, model),
        (None, _) => list(frame, body, model),
    }
    frame.render_widget(footer(model), foot);
    if model.mode == Mode::Helping {
        help(frame, body);
    }
}

/// How the gateway fares, or that it does not answer.
fn header(model: &Model) -> Line<'static> {
    if let Some((silent, why)) = model.silence() {
        let seconds = silent.as_secs();
        let text = format!("NO ANSWER for {seconds} s, asking again: {why}");
        return Line::styled(text.replace(|c: char| c.is_control(), " "), BAD.patch(MARKED));
    }
    let status = &model.status;
    let word = |field: &str, form| cell(status.get(field), form);
    let (state, style) = match (status["draining"] == true, status["ready"] == true) {
        (true, _) => ("draining", WARNING),
        (false, true) => ("ready", GOOD),
        (false, false) => ("not ready", BAD),
    };
    let flows = match status["flows"].as_u64() {
        None | Some(0) => String::new(),
        Some(flows) => format!("  flows {flows}"),
    };
    let rest = format!(
        "  sessions {} of {}{flows}  new {}/s  up {}/s  down {}/s  for {}",
        word("sessions", As::Text),
        word("sessions_most", As::Text),
        word("opened_per_second", As::Text),
        word("bytes_up_per_second", As::Bytes),
        word("bytes_down_per_second", As::Bytes),
        word("uptime_ms", As::Millis),
    );
    Line::from(vec![Span::styled(state, style.patch(TITLE)), Span::raw(rest)])
}

/// The names of the panes. Where there is no room for them, only the one that is shown has a name.
fn names(shown: Pane, width: u16) -> Line<'static> {
    let whole: usize = Pane::ALL.iter().map(|pane| pane.title().len() + 4).sum();
    let mut spans = Vec::new();
    for (number, pane) in (1..).zip(Pane::ALL) {
        let text = match pane == shown || whole <= usize::from(width) {
            true => format!(" {number} {} ", pane.title()),
            false => format!(" {number} "),
        };
        spans.push(Span::styled(text, if pane == shown { MARKED } else { Style::new() }));
    }
    Line::from(spans)
}

fn footer(model: &Model) -> Line<'static> {
    match &model.mode {
        Mode::Filtering(text) => Line::raw(format!("filter: {text}\u{2588}  (Enter, Esc)")),
        Mode::Confirming(id) => Line::styled(format!("close {id}? y: yes, other keys: no"), MARKED),
        Mode::Browsing | Mode::Helping => match (model.said(), &model.followed) {
            (Some(said), _) => Line::styled(said.to_owned(), WARNING),
            (None, Some(_)) => Line::raw("Esc back  x close  \u{2191}\u{2193} move  ? help  q end"),
            (None, None) if model.pane == Pane::Overview => {
                Line::raw("1-6 or Tab: another pane  ? help  q end")
            }
            (None, None) => {
                Line::raw("? help  q end  s sort  r reverse  / filter  Enter more  x close")
            }
        },
    }
}

fn list(frame: &mut Frame<'_>, area: Rect, model: &mut Model) {
    let (pane, udp) = (model.pane, model.udp);
    let view = model.view();
    let below = pane.said().map_or(0, |_| SAID);
    let [about, rows, said] = area.layout(&Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(2),
        Constraint::Length(below),
    ]));
    frame.render_widget(Line::styled(about_list(pane, udp, view), TITLE), about);
    let columns = fitting(pane.columns(), view, rows.width.into());
    let texts: Vec<_> = view.rows.iter().map(|row| cells(row, columns)).collect();
    let titles: Vec<_> = columns.iter().map(|of| of.title).collect();
    let widths = widths(&titles, &texts, (GAP.into(), rows.width.into()));
    let right: Vec<_> = (0..columns.len()).map(|at| is_number(&texts, at)).collect();
    let line = |texts: &[String]| {
        let cells = texts.iter().zip(&widths).zip(&right).map(|((text, width), right)| {
            let text = Line::raw(cut(text, *width));
            Cell::new(if *right { text.alignment(Alignment::Right) } else { text })
        });
        Row::new(cells.collect::<Vec<_>>())
    };
    let titles: Vec<_> = titles.into_iter().map(str::to_owned).collect();
    let lines =
        view.rows.iter().zip(&texts).map(|(row, texts)| line(texts).style(style(pane, row)));
    let length = |width: &usize| Constraint::Length(u16::try_from(*width).unwrap_or(u16::MAX));
    let table = Table::new(lines.collect::<Vec<_>>(), widths.iter().map(length))
        .header(line(&titles).style(TITLE))
        .column_spacing(GAP)
        .row_highlight_style(MARKED);
    if let (Some(field), Some(row)) = (pane.said(), view.selected()) {
        let text = row.get(field).map(|of| cell(Some(of), As::Text)).unwrap_or_default();
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), said);
    }
    frame.render_stateful_widget(table, rows, &mut view.table);
}

/// What is listed, in which order, and how much of it.
fn about_list(pane: Pane, udp: bool, view: &View) -> String {
    let what = if pane == Pane::Sessions && udp { "Flows" } else { pane.title() };
    let order = if view.reverse { ", reversed" } else { "" };
    let count = match view.matched {
        Some(matched) if matched > view.rows.len() as u64 => {
            format!("{} of {matched}", view.rows.len())
        }
        _ => view.rows.len().to_string(),
    };
    let filter = match view.filter.text.is_empty() {
        true => String::new(),
        false => format!("  filter: {}", view.filter.text),
    };
    format!("{what}: {count}  sort: {}{order}{filter}", view.by(pane).title)
}

/// The first columns, as many as have room.
fn fitting(columns: &'static [Column], view: &View, width: usize) -> &'static [Column] {
    let widest = |column: &Column| {
        let rows = view.rows.iter();
        let cells = rows.map(|row| cell(row.get(column.field), column.form).chars().count());
        cells.chain([column.title.len()]).max().unwrap_or(0)
    };
    let (mut taken, gap) = (0, usize::from(GAP));
    let fits = columns.iter().take_while(|column| {
        taken += widest(column).min(column.least.max(column.title.len())) + gap;
        taken <= width + gap
    });
    &columns[..fits.count().max(1)]
}

/// The colour of a row: what is wrong is seen from afar.
fn style(pane: Pane, row: &Value) -> Style {
    let word = |field: &str| row.get(field).and_then(Value::as_str).unwrap_or_default();
    match (pane, word("state"), word("level").to_lowercase().as_str()) {
        (Pane::Backends, "no_endpoint", _) | (Pane::Events, _, "error") => BAD,
        (Pane::Backends, "degraded" | "drained", _)
        | (Pane::Listeners, "draining" | "drained", _)
        | (Pane::Events, _, "warn") => WARNING,
        _ => Style::new(),
    }
}

fn help(frame: &mut Frame<'_>, area: Rect) {
    let keys = HELP.iter().map(|(key, does)| Line::raw(format!("{key:<15} {does}")));
    let height = u16::try_from(HELP.len()).unwrap_or(u16::MAX).saturating_add(2).min(area.height);
    let area = Rect { height, ..area };
    frame.render_widget(Clear, area);
    let block = Block::bordered().title(" any key goes back ");
    frame.render_widget(Paragraph::new(keys.collect::<Vec<_>>()).block(block), area);
}
