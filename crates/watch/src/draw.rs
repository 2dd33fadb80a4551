//! The view on a terminal.
//!
//! From top to bottom: what runs and where it is seen; why it is where it is; what needs a look; how far it is; curves
//! and numbers; tabs; the rows of the chosen pane; keys.

#[cfg(test)]
mod tests;

use crate::curves::{bounds, spark};
use crate::lists::{self, Item, Mark};
use crate::text::{clean, duration, short};
use crate::view::{Link, Over, Pane, Snapshot, View, Wish};
use mcl_proto::v1::{GetHistoryResponse, GetStatusResponse, HistoryPoint};
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Borders, Cell, Chart, Clear, Dataset, GraphType, Paragraph, Row, Table};

/// Lines above the curves, and those that tabs, the table's head and keys take.
const ABOVE: u16 = 4;
const BETWEEN: u16 = 2;
const BELOW: u16 = 1;
/// Lines of the curves: at least, with their border; and the share of a large terminal.
const CURVES: u16 = 10;
/// Share of a step spent waiting for pictures above which they are said to be the limit.
pub const DATA_LIMIT: f64 = 0.2;
/// Columns of the numbers beside the chart.
const NUMBERS: u16 = 36;
/// What stands before a number's curve.
const LABEL: usize = 11;
const VALUE: usize = 9;

/// Rows of a pane that are seen at once.
pub(crate) fn page(size: (u16, u16)) -> usize {
    usize::from(parts(Rect::new(0, 0, size.0, size.1)).rows.height)
}

/// Where everything is.
struct Parts {
    head: Rect,
    curves: Rect,
    tabs: Rect,
    titles: Rect,
    rows: Rect,
    keys: Rect,
}

/// Small terminals do without curves, then without the rest of the head: rows and keys stay longest.
fn parts(area: Rect) -> Parts {
    let room = area.height.saturating_sub(ABOVE + BETWEEN + BELOW);
    let curves = if room < CURVES + 3 { 0 } else { CURVES.max(room * 2 / 5) };
    let above = ABOVE.min(area.height.saturating_sub(BETWEEN + BELOW + 1));
    let [head, curves, tabs, titles, rows, keys] = Layout::vertical([
        Constraint::Length(above),
        Constraint::Length(curves),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(area);
    Parts { head, curves, tabs, titles, rows, keys }
}

/// Colours, or none.
#[derive(Clone, Copy)]
struct Palette {
    colour: bool,
}

impl Palette {
    fn of(self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    fn mark(self, mark: Mark) -> Style {
        match mark {
            Mark::Bad => self.of(Color::Red).add_modifier(Modifier::BOLD),
            Mark::Warn => self.of(Color::Yellow),
            Mark::Plain => Style::new(),
            Mark::Faint => Style::new().add_modifier(Modifier::DIM),
        }
    }

    fn phase(self, phase: &str) -> Style {
        let bold = |colour| self.of(colour).add_modifier(Modifier::BOLD);
        match phase {
            "training" | "done" => bold(Color::Green),
            "failed" | "cancelled" => bold(Color::Red),
            _ => bold(Color::Yellow),
        }
    }
}

/// Draws it all.
pub fn draw(view: &View, frame: &mut Frame<'_>) {
    let area = frame.area();
    let parts = parts(area);
    let palette = Palette { colour: view.colour };
    head(view, palette, frame, parts.head);
    curves(view, palette, frame, parts.curves);
    tabs(view, frame, parts.tabs);
    rows(view, palette, frame, &parts);
    keys(view, palette, frame, parts.keys);
    match view.over {
        Over::Help => help(frame, area),
        Over::Confirm(wish) => confirm(view, wish, frame, area),
        Over::Nothing | Over::Filter => {}
    }
}

fn head(view: &View, palette: Palette, frame: &mut Frame<'_>, area: Rect) {
    let status = &view.snapshot.status;
    let lines: [Rect; 4] = Layout::vertical([Constraint::Length(1); 4]).areas(area);
    let run = if status.run_id.is_empty() { "no job".to_owned() } else { clean(&status.run_id) };
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let mut title = vec![Span::styled(run, bold), Span::raw("  ")];
    if view.snapshot.link == Link::None {
        title.push(Span::raw("looking for it"));
    } else {
        title.push(Span::styled(clean(&status.phase), palette.phase(&status.phase)));
        title.push(Span::raw(format!("  generation {}, term {}", status.generation, status.term)));
    }
    let from = match &view.snapshot.link {
        Link::None => String::new(),
        Link::Coordinator(url) => clean(url),
        Link::Files(folder) => format!("files of {}", clean(folder)),
    };
    let width = u16::try_from(from.chars().count()).unwrap_or(u16::MAX).min(area.width / 2);
    let [left, right] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Length(width)]).spacing(1).areas(lines[0]);
    frame.render_widget(Line::from(title), left);
    frame.render_widget(Line::from(from).style(palette.mark(Mark::Faint)), right);
    frame.render_widget(Line::from(clean(&status.reason)), lines[1]);
    let (mark, text) = attention(view);
    frame.render_widget(Line::styled(text, palette.mark(mark)), lines[2]);
    frame.render_widget(progress(view, palette, lines[3].width), lines[3]);
}

/// What needs a look: that nobody answers, lost workers, stragglers; or that all is well.
fn attention(view: &View) -> (Mark, String) {
    let status = &view.snapshot.status;
    if let Some(away) = &view.away {
        let since = duration(view.now - away.since);
        return (
            Mark::Bad,
            format!("the coordinator does not answer for {since}, trying again: {}", clean(&away.why)),
        );
    }
    let lost: Vec<&str> =
        status.workers.iter().filter(|w| lists::is_lost(w)).map(|w| w.worker.as_str()).collect();
    let slow = status.ranks.iter().filter(|r| r.straggler);
    let slow: Vec<String> = slow.map(|r| format!("{} on {}", r.rank, r.worker)).collect();
    let slow: Vec<&str> = slow.iter().map(String::as_str).collect();
    let mut said = Vec::new();
    for (names, one, many) in [(&lost, "worker lost", "workers lost"), (&slow, "straggler", "stragglers")] {
        let shown = names.iter().take(3).copied().collect::<Vec<_>>().join(", ");
        match names.len() {
            0 => {}
            1 => said.push(format!("1 {one}: {shown}")),
            n if n <= 3 => said.push(format!("{n} {many}: {shown}")),
            n => said.push(format!("{n} {many}: {shown} ...")),
        }
    }
    if status.data_wait_share > DATA_LIMIT {
        said.push(format!("pictures are the limit ({:.0} % of the time)", 100.0 * status.data_wait_share));
    }
    if said.is_empty() {
        let (workers, ranks) = (status.workers.len(), status.ranks.len());
        return (Mark::Faint, format!("{workers} workers, {ranks} ranks"));
    }
    (if lost.is_empty() { Mark::Warn } else { Mark::Bad }, clean(&said.join("; ")))
}

/// `█████░░░░ 1200/5000  24.0 %  epoch 3  ETA 12 m 40 s`
fn progress(view: &View, palette: Palette, width: u16) -> Line<'static> {
    let status = &view.snapshot.status;
    let (done, all) = (status.committed_steps, status.total_steps);
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    let share = if all == 0 { 0.0 } else { (done as f64 / all as f64).clamp(0.0, 1.0) };
    let mut text = format!(" {done}/{all} steps  {:.1} %", 100.0 * share);
    if let Some(epoch) = done.checked_div(status.steps_per_epoch) {
        text += &format!("  epoch {epoch}");
    }
    if let Some(left) = left(&view.snapshot).filter(|_| view.away.is_none() && status.phase == "training") {
        text += &format!("  ETA {}", duration(left));
    }
    let room = usize::from(width).saturating_sub(text.chars().count()).min(60);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "columns"
    )]
    let full = (share * room as f64).round() as usize;
    Line::from(vec![
        Span::styled("█".repeat(full), palette.of(Color::Green)),
        Span::styled("░".repeat(room.saturating_sub(full)), palette.mark(Mark::Faint)),
        Span::raw(text),
    ])
}

/// Seconds that the rest takes at the pace of the newest steps.
pub(crate) fn left(seen: &Snapshot) -> Option<f64> {
    let pace = seen.history.steps_per_second.filter(|p| *p > 0.0)?;
    #[expect(clippy::cast_precision_loss, reason = "steps")]
    let rest = seen.status.total_steps.saturating_sub(seen.status.committed_steps) as f64;
    Some(rest / pace)
}

fn curves(view: &View, palette: Palette, frame: &mut Frame<'_>, area: Rect) {
    if area.height == 0 {
        return;
    }
    let numbers_wide = NUMBERS.min(area.width / 2);
    let [left, right] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Length(numbers_wide)]).spacing(1).areas(area);
    chart(view, palette, frame, left);
    let status = &view.snapshot.status;
    let block = Block::new().borders(Borders::TOP).title(" numbers ");
    let inside = block.inner(right);
    frame.render_widget(block, right);
    let lines = numbers(&view.snapshot.history, status, inside.width);
    frame.render_widget(Paragraph::new(lines), inside);
}

fn chart(view: &View, palette: Palette, frame: &mut Frame<'_>, area: Rect) {
    let points = &view.snapshot.history.points;
    #[expect(clippy::cast_precision_loss, reason = "steps")]
    let at = |p: &HistoryPoint| p.first_step.midpoint(p.last_step) as f64;
    let data: Vec<(f64, f64)> =
        points.iter().filter_map(|p| Some((at(p), p.loss.filter(|l| l.is_finite())?))).collect();
    let last = data.last().map(|(_, loss)| format!(" {}", short(*loss))).unwrap_or_default();
    let block = Block::new().borders(Borders::TOP).title(format!(" loss{last} "));
    let (Some(x), Some(y)) = (bounds(data.iter().map(|d| d.0)), bounds(data.iter().map(|d| d.1))) else {
        let note = Paragraph::new("no step is committed yet").block(block);
        return frame.render_widget(note, area);
    };
    let dataset = Dataset::default()
        .marker(Marker::Braille)
        .graph_type(GraphType::Line)
        .style(palette.of(Color::Cyan))
        .data(&data);
    let faint = palette.mark(Mark::Faint);
    let steps = |v: f64| format!("{:.0}", v.max(0.0));
    let chart = Chart::new(vec![dataset])
        .block(block)
        .legend_position(None)
        .x_axis(Axis::default().bounds(x).labels([steps(x[0]), steps(x[1])]).style(faint))
        .y_axis(Axis::default().bounds(y).labels([short(y[0]), short(y[1])]).style(faint));
    frame.render_widget(chart, area);
}

/// One line a number: its name, what it is now, and how it went.
fn numbers(history: &GetHistoryResponse, status: &GetStatusResponse, width: u16) -> Vec<Line<'static>> {
    let (points, recent) = (&history.points, &history.recent);
    let room = usize::from(width).saturating_sub(LABEL + VALUE + 1);
    let line = |name: &str, value: String, series: Vec<Option<f64>>| {
        Line::from(format!("{name:<LABEL$}{value:>VALUE$} {}", spark(&series, room)))
    };
    let series = |of: &dyn Fn(&HistoryPoint) -> Option<f64>| points.iter().map(of).collect::<Vec<_>>();
    let now = recent.last();
    let told = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), short);
    let levels = points.iter().map(|p| p.loss_per_level.len()).max().unwrap_or(0);
    let mut lines: Vec<Line<'static>> = (0..levels)
        .map(|level| {
            let of = move |p: &HistoryPoint| p.loss_per_level.get(level).copied();
            let name = history.levels.get(level).map_or_else(|| format!("level {level}"), |name| clean(name));
            line(&name, told(now.and_then(of)), series(&of))
        })
        .collect();
    lines.push(line("lr", told(now.and_then(|p| p.lr)), series(&|p| p.lr)));
    lines.push(line("momentum", told(now.and_then(|p| p.momentum)), series(&|p| p.momentum)));
    lines.push(line("grad norm", told(now.and_then(|p| p.grad_norm)), series(&|p| p.grad_norm)));
    let images = Some(status.images_per_second).filter(|v| *v > 0.0);
    lines.push(line("images/s", told(images), series(&|p| p.images_per_second)));
    let wait = format!("{:.1} %", 100.0 * status.data_wait_share);
    lines.push(line("data wait", wait, series(&|p| p.data_wait_seconds)));
    lines
}

fn tabs(view: &View, frame: &mut Frame<'_>, area: Rect) {
    let mut spans = Vec::new();
    for pane in Pane::ALL {
        let text = format!(" {} {} ", pane.title(), lists::count(&view.snapshot, pane));
        let chosen = pane == view.pane;
        let style = if chosen {
            Style::new().add_modifier(Modifier::REVERSED | Modifier::BOLD)
        } else {
            Style::new()
        };
        spans.push(Span::styled(text, style));
    }
    frame.render_widget(Line::from(spans), area);
}

fn rows(view: &View, palette: Palette, frame: &mut Frame<'_>, parts: &Parts) {
    let columns = lists::columns(view.pane);
    let widths: Vec<Constraint> = columns.iter().map(|(_, width, _)| *width).collect();
    let titles = columns.iter().map(|(title, _, side)| cell((*title).to_owned(), *side));
    let head = Table::new([Row::new(titles).style(palette.mark(Mark::Faint))], widths.clone());
    frame.render_widget(head, parts.titles);
    let items = lists::items(&view.snapshot, view.pane, &view.filter, view.now);
    if items.is_empty() {
        let text = if view.filter.is_empty() { "nothing yet" } else { "nothing holds what is filtered for" };
        return frame.render_widget(Line::styled(text, palette.mark(Mark::Faint)), parts.rows);
    }
    let row = |(at, item): (usize, Item)| {
        let style = palette.mark(item.mark);
        let style = if at == view.row { style.add_modifier(Modifier::REVERSED) } else { style };
        let cells = item.cells.into_iter().zip(columns).map(|(text, (_, _, side))| cell(text, *side));
        Row::new(cells).style(style)
    };
    let seen = items.into_iter().enumerate().skip(view.top).take(usize::from(parts.rows.height)).map(row);
    frame.render_widget(Table::new(seen, widths), parts.rows);
}

fn cell(text: String, side: Alignment) -> Cell<'static> {
    Cell::new(Line::from(text).alignment(side))
}

fn keys(view: &View, palette: Palette, frame: &mut Frame<'_>, area: Rect) {
    let line = match (view.over, &view.note) {
        (Over::Filter, _) => Line::from(format!("/{}_  Enter: keep, Esc: clear", clean(&view.filter))),
        (_, Some(note)) => Line::styled(clean(note), palette.of(Color::Yellow)),
        _ if !view.filter.is_empty() => {
            let text = format!("filter: {}  Esc: all rows", clean(&view.filter));
            Line::styled(text, palette.of(Color::Yellow))
        }
        _ => {
            let text = "q quit  ? help  Tab pane  jk move  / filter  p pause  r resume  d drain";
            Line::styled(text, palette.mark(Mark::Faint))
        }
    };
    frame.render_widget(line, area);
}

/// What keys do.
const HELP: &str = "\
q, Ctrl-C        leave; the run goes on
Tab, Shift-Tab   next pane, pane before; also 1 to 5
up, down, j, k   move
PageUp, PageDown, Home, End, g, G
/                show rows that hold a text; Esc shows all
p                pause: finish the step, checkpoint, hold
r                resume
d                drain: finish the step, checkpoint, stop
?                this; any key closes it";

fn help(frame: &mut Frame<'_>, area: Rect) {
    let (wide, high) = HELP.lines().fold((0, 0), |(w, h), line| (line.chars().count().max(w), h + 1));
    over(frame, area, " keys ", HELP, (wide, high));
}

fn confirm(view: &View, wish: Wish, frame: &mut Frame<'_>, area: Rect) {
    let run = clean(&view.snapshot.status.run_id);
    let text = format!(
        "{} {run}?\n\nThe step in flight is finished, a checkpoint is taken,\nand the run stops. It can be continued later.\n\ny: yes, any other key: no",
        wish.verb()
    );
    let wide = text.lines().map(|l| l.chars().count()).max().unwrap_or(0);
    over(frame, area, " sure? ", &text, (wide, 6));
}

/// A box in the middle.
fn over(frame: &mut Frame<'_>, area: Rect, title: &str, text: &str, (wide, high): (usize, usize)) {
    let fit = |n: usize, most: u16| u16::try_from(n).unwrap_or(most).saturating_add(2).min(most);
    let (wide, high) = (fit(wide + 2, area.width), fit(high, area.height));
    let middle = Rect::new(area.x + (area.width - wide) / 2, area.y + (area.height - high) / 2, wide, high);
    frame.render_widget(Clear, middle);
    let block = Block::bordered().title(title.to_owned());
    let inside = block.inner(middle);
    frame.render_widget(block, middle);
    let inside = Rect { x: inside.x + 1.min(inside.width), width: inside.width.saturating_sub(1), ..inside };
    frame.render_widget(Paragraph::new(text.to_owned()), inside);
}
