//! The colours of `ringway top`.

use ratatui::style::{Color, Modifier, Style};

pub const TITLE: Style = Style::new().add_modifier(Modifier::BOLD);
pub const GOOD: Style = Style::new().fg(Color::Green);
pub const WARNING: Style = Style::new().fg(Color::Yellow);
pub const BAD: Style = Style::new().fg(Color::Red);
pub const BARS: Style = Style::new().fg(Color::Cyan);
pub const MARKED: Style = Style::new().add_modifier(Modifier::REVERSED);
