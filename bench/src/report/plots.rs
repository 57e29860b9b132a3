//! Plots as SVG and PNG: grouped bars with 95 % intervals, and curves of how cost grows.
//!
//! The letters of the PNGs come with the program: it needs no font of the machine.

use std::fs;
use std::path::Path;

use anyhow::{Context, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};

use super::chart::{Bars, Chart, Curves, Plot};
use super::palette::color;

pub fn draw(charts: &[(Plot, Chart)], directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory)?;
    register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular())
        .map_err(|_| anyhow!("DejaVu Sans does not parse"))?;
    for (plot, chart) in charts {
        let path = |ending: &str| directory.join(format!("{}.{ending}", plot.file));
        let (svg, png) = (path("svg"), path("png"));
        on(SVGBackend::new(&svg, SIZE), plot, chart).with_context(|| svg.display().to_string())?;
        on(BitMapBackend::new(&png, SIZE), plot, chart)
            .with_context(|| png.display().to_string())?;
    }
    Ok(())
}

const SIZE: (u32, u32) = (1000, 520);
const FONT: &str = "sans-serif";
const SMALL: (&str, u32) = (FONT, 13);
/// The width of the legend and the height of a line of small letters.
const LEGEND: u32 = 150;
const LINE: i32 = 16;

fn on<B: DrawingBackend>(backend: B, plot: &Plot, chart: &Chart) -> anyhow::Result<()> {
    let area = backend.into_drawing_area();
    area.fill(&WHITE).map_err(|error| anyhow!("{error}"))?;
    let drawn = page(&area, plot, chart);
    drawn.and_then(|()| area.present()).map_err(|error| anyhow!("{error}"))
}

type Drawn<B> = Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

/// The title is above and the legend on the right, so that neither lies on what is drawn.
fn page<B: DrawingBackend>(area: &DrawingArea<B, Shift>, plot: &Plot, chart: &Chart) -> Drawn<B> {
    let below = area.margin(8, 0, 0, 0).titled(&plot.title, (FONT, 20))?;
    let (left, right) = below.split_horizontally(SIZE.0 - LEGEND);
    legend(&right, &chart.peers())?;
    match chart {
        Chart::Bars(bars) => draw_bars(&left, bars),
        Chart::Curves(curves) => draw_curves(&left, curves),
    }
}

fn legend<B: DrawingBackend>(area: &DrawingArea<B, Shift>, peers: &[&str]) -> Drawn<B> {
    let mut y = LINE;
    for peer in peers {
        area.draw(&Rectangle::new([(0, y - 1), (12, y + 11)], color(peer).filled()))?;
        area.draw_text(peer, &SMALL.into_text_style(area), (18, y))?;
        y += LINE + 6;
    }
    Ok(())
}

/// Groups stand at 1, 2, 3, ... of the horizontal axis, their bars side by side.
fn draw_bars<B: DrawingBackend>(area: &DrawingArea<B, Shift>, bars: &Bars) -> Drawn<B> {
    let count = bars.groups.len();
    let top = bars.groups.iter().flat_map(|group| &group.bars).flatten();
    let top = top.map(|bar| bar.high.min(bar.middle * 2.0)).fold(0.0, f64::max) * 1.1;
    let mut context = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(4 * LINE as u32)
        .y_label_area_size(72)
        .build_cartesian_2d(0.5..count as f64 + 0.5, 0.0..top.max(1e-9))?;
    context
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_desc(&bars.scale)
        .label_style(SMALL)
        .draw()?;
    let width = 0.8 / bars.peers.len().max(1) as f64;
    for (peer, name) in bars.peers.iter().enumerate() {
        let left = |group: usize| group as f64 + 0.6 + peer as f64 * width;
        let of_peer = bars.groups.iter().enumerate();
        let of_peer = of_peer.filter_map(|(group, of)| Some((left(group), of.bars[peer]?)));
        let boxes = of_peer.clone().map(|(x, bar)| {
            Rectangle::new([(x, 0.0), (x + width * 0.9, bar.middle)], color(name).filled())
        });
        context.draw_series(boxes)?;
        let whiskers = of_peer.filter(|(_, bar)| bar.count > 1).map(|(x, bar)| {
            let (x, high) = (x + width * 0.45, bar.high.min(top));
            PathElement::new(vec![(x, bar.low.max(0.0)), (x, high)], BLACK.stroke_width(1))
        });
        context.draw_series(whiskers)?;
    }
    let at = |group: usize| context.backend_coord(&(group as f64 + 1.0, 0.0));
    let room = (at(1).0 - at(0).0).unsigned_abs();
    for (group, of) in bars.groups.iter().enumerate() {
        group_name(area, &of.name, at(group), room)?;
    }
    Ok(())
}

/// Under the axis at `at`: a line for each part, or more where `room` is too narrow for it.
fn group_name<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    name: &str,
    at: (i32, i32),
    room: u32,
) -> Drawn<B> {
    let style = SMALL.into_text_style(area).pos(Pos::new(HPos::Center, VPos::Top));
    let (across, down) = area.get_pixel_range();
    let (x, mut y) = (at.0 - across.start, at.1 - down.start + 6);
    for part in name.split(", ") {
        let mut line = String::new();
        for word in part.split_inclusive('-') {
            let longer = format!("{line}{word}");
            if !line.is_empty() && area.estimate_text_size(&longer, &style)?.0 + 8 > room {
                area.draw_text(&line, &style, (x, y))?;
                y += LINE;
                line = word.to_owned();
            } else {
                line = longer;
            }
        }
        area.draw_text(&line, &style, (x, y))?;
        y += LINE;
    }
    Ok(())
}

fn draw_curves<B: DrawingBackend>(area: &DrawingArea<B, Shift>, curves: &Curves) -> Drawn<B> {
    let points = || curves.lines.iter().flat_map(|(_, points)| points);
    let low = points().map(|(x, _)| *x).fold(f64::INFINITY, f64::min);
    let high = points().map(|(x, _)| *x).fold(low, f64::max);
    let top = points().map(|(_, bar)| bar.middle).fold(0.0, f64::max) * 1.1;
    let mut context = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d((low * 0.9..high * 1.1).log_scale(), 0.0..top.max(1e-9))?;
    context
        .configure_mesh()
        .x_desc(curves.across)
        .y_desc(&curves.scale)
        .x_label_formatter(&|x| format!("{x}"))
        .label_style(SMALL)
        .draw()?;
    for (peer, points) in &curves.lines {
        let color = color(peer);
        let line = points.iter().map(|(x, bar)| (*x, bar.middle));
        context.draw_series(LineSeries::new(line, color.stroke_width(2)))?;
        let dots = points.iter().map(|(x, bar)| Circle::new((*x, bar.middle), 3, color.filled()));
        context.draw_series(dots)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::chart::charts;
    use crate::results::sample;

    #[test]
    fn plots_are_pictures_in_both_formats() {
        let directory = std::env::temp_dir().join(format!("ringway-plots-{}", std::process::id()));
        let peers = [("ringway", 0.5), ("nginx", 1.0), ("direct", 0.1)];
        let mut results = sample("tcp-request-64x1", 3, &peers);
        results.add(sample("tcp-request-64x64", 3, &peers));
        let charts = charts(&results);
        draw(&charts, &directory).expect("it can be drawn");
        assert!(charts.len() >= 4, "{}", charts.len());
        for (plot, _) in &charts {
            let svg = fs::read_to_string(directory.join(format!("{}.svg", plot.file)));
            assert!(svg.expect("there").contains("ringway"), "{plot:?}");
            let png = fs::read(directory.join(format!("{}.png", plot.file))).expect("there");
            assert!(png.starts_with(b"\x89PNG") && png.len() > 2_000, "{plot:?}");
        }
        fs::remove_dir_all(directory).expect("ours");
    }
}
