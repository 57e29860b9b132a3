//! Plots as SVG and PNG: grouped bars with 95 % intervals, and curves of how cost grows.
//!
//! The letters of the PNGs come with the program: it needs no font of the machine.

use std::fs;
use std::path::Path;

use anyhow::{Context, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use crate::results::Results;

use super::chart::{Bars, Chart, Curves, Plot, charts};

pub fn draw(results: &Results, directory: &Path) -> anyhow::Result<Vec<Plot>> {
    fs::create_dir_all(directory)?;
    register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular())
        .map_err(|_| anyhow!("DejaVu Sans does not parse"))?;
    let charts = charts(results);
    for (plot, chart) in &charts {
        let path = |ending: &str| directory.join(format!("{}.{ending}", plot.file));
        let (svg, png) = (path("svg"), path("png"));
        on(SVGBackend::new(&svg, SIZE), plot, chart).with_context(|| svg.display().to_string())?;
        on(BitMapBackend::new(&png, SIZE), plot, chart)
            .with_context(|| png.display().to_string())?;
    }
    Ok(charts.into_iter().map(|(plot, _)| plot).collect())
}

const SIZE: (u32, u32) = (1000, 520);
const FONT: &str = "sans-serif";

fn on<B: DrawingBackend>(backend: B, plot: &Plot, chart: &Chart) -> anyhow::Result<()> {
    let area = backend.into_drawing_area();
    area.fill(&WHITE).map_err(|error| anyhow!("{error}"))?;
    let drawn = match chart {
        Chart::Bars(bars) => draw_bars(&area, plot, bars),
        Chart::Curves(curves) => draw_curves(&area, plot, curves),
    };
    drawn.and_then(|()| area.present()).map_err(|error| anyhow!("{error}"))
}

type Drawn<B> = Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

/// Groups stand at 1, 2, 3, ... of the horizontal axis, their bars side by side.
fn draw_bars<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    plot: &Plot,
    bars: &Bars,
) -> Drawn<B> {
    let count = bars.groups.len();
    let top = bars.groups.iter().flat_map(|group| &group.bars).flatten();
    let top = top.map(|bar| bar.high.min(bar.mean * 2.0)).fold(0.0, f64::max) * 1.1;
    let mut builder = ChartBuilder::on(area);
    builder.caption(&plot.title, (FONT, 20)).margin(12).x_label_area_size(36);
    let mut context = builder
        .y_label_area_size(72)
        .build_cartesian_2d(0.5..count as f64 + 0.5, 0.0..top.max(1e-9))?;
    let name = |x: &f64| {
        let index = (1..=count).find(|index| (*index as f64 - x).abs() < 1e-6);
        index.map_or(String::new(), |index| bars.groups[index - 1].name.clone())
    };
    context
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(2 * count + 1)
        .x_label_formatter(&name)
        .y_desc(&bars.scale)
        .label_style((FONT, 13))
        .draw()?;
    let width = 0.8 / bars.peers.len().max(1) as f64;
    for (peer, label) in bars.peers.iter().enumerate() {
        let color = color(peer);
        let left = |group: usize| group as f64 + 0.6 + peer as f64 * width;
        let of_peer = bars.groups.iter().enumerate();
        let of_peer = of_peer.filter_map(|(group, of)| Some((left(group), of.bars[peer]?)));
        let boxes = of_peer.clone().map(|(x, bar)| {
            Rectangle::new([(x, 0.0), (x + width * 0.9, bar.mean)], color.filled())
        });
        context
            .draw_series(boxes)?
            .label(label)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], color.filled()));
        let whiskers = of_peer.filter(|(_, bar)| bar.count > 1).map(|(x, bar)| {
            let (x, high) = (x + width * 0.45, bar.high.min(top));
            PathElement::new(vec![(x, bar.low.max(0.0)), (x, high)], BLACK.stroke_width(1))
        });
        context.draw_series(whiskers)?;
    }
    legend(&mut context)
}

fn draw_curves<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    plot: &Plot,
    curves: &Curves,
) -> Drawn<B> {
    let points = || curves.lines.iter().flat_map(|(_, points)| points);
    let low = points().map(|(x, _)| *x).fold(f64::INFINITY, f64::min);
    let high = points().map(|(x, _)| *x).fold(low, f64::max);
    let top = points().map(|(_, bar)| bar.mean).fold(0.0, f64::max) * 1.1;
    let mut builder = ChartBuilder::on(area);
    builder.caption(&plot.title, (FONT, 20)).margin(12).x_label_area_size(44);
    let mut context = builder
        .y_label_area_size(72)
        .build_cartesian_2d((low * 0.9..high * 1.1).log_scale(), 0.0..top.max(1e-9))?;
    context
        .configure_mesh()
        .x_desc(curves.across)
        .y_desc(&curves.scale)
        .x_label_formatter(&|x| format!("{x}"))
        .label_style((FONT, 13))
        .draw()?;
    for (peer, (label, points)) in curves.lines.iter().enumerate() {
        let color = color(peer);
        let line =
            LineSeries::new(points.iter().map(|(x, bar)| (*x, bar.mean)), color.stroke_width(2));
        context.draw_series(line)?.label(label).legend(move |(x, y)| {
            PathElement::new(vec![(x, y), (x + 10, y)], color.stroke_width(2))
        });
        let dots = points.iter().map(|(x, bar)| Circle::new((*x, bar.mean), 3, color.filled()));
        context.draw_series(dots)?;
    }
    legend(&mut context)
}

fn legend<'a, B: DrawingBackend + 'a, C: CoordTranslate>(
    context: &mut ChartContext<'a, B, C>,
) -> Drawn<B> {
    context
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font((FONT, 13))
        .draw()
}

/// Of series number `index`: told apart with any colour vision, by Okabe and Ito; then greys.
fn color(index: usize) -> RGBColor {
    const COLORS: [RGBColor; 11] = [
        RGBColor(213, 94, 0),
        RGBColor(0, 114, 178),
        RGBColor(86, 180, 233),
        RGBColor(0, 158, 115),
        RGBColor(204, 121, 167),
        RGBColor(230, 159, 0),
        RGBColor(240, 228, 66),
        RGBColor(90, 90, 90),
        RGBColor(130, 130, 130),
        RGBColor(170, 170, 170),
        RGBColor(205, 205, 205),
    ];
    COLORS[index % COLORS.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::sample;

    #[test]
    fn plots_are_pictures_in_both_formats() {
        let directory = std::env::temp_dir().join(format!("ringway-plots-{}", std::process::id()));
        let peers = [("ringway", 0.5), ("nginx", 1.0), ("direct", 0.1)];
        let mut results = sample("tcp-request-64x1", 3, &peers);
        results.add(sample("tcp-request-64x64", 3, &peers));
        let drawn = draw(&results, &directory).expect("it can be drawn");
        assert!(drawn.len() >= 4, "{drawn:?}");
        for plot in &drawn {
            let svg = fs::read_to_string(directory.join(format!("{}.svg", plot.file)));
            assert!(svg.expect("there").contains("ringway"), "{plot:?}");
            let png = fs::read(directory.join(format!("{}.png", plot.file))).expect("there");
            assert!(png.starts_with(b"\x89PNG") && png.len() > 2_000, "{plot:?}");
        }
        fs::remove_dir_all(directory).expect("ours");
    }
}
