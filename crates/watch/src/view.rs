//! All that is known and chosen, and how an event changes it.

use crate::lists;
use mcl_proto::v1;

/// What is seen of a run at one time.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    /// What its coordinator says.
    pub status: v1::GetStatusResponse,
    /// How it came there.
    pub history: v1::GetHistoryResponse,
    /// Where that comes from.
    pub link: Link,
}

/// Where what is seen comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Link {
    /// Nothing was seen yet.
    #[default]
    None,
    /// A coordinator, at this address.
    Coordinator(String),
    /// The files of a run directory: nobody runs it now.
    Files(String),
}

/// A key, as far as it means something here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// One that writes.
    Char(char),
    /// Control and a letter.
    Control(char),
    /// The arrow up.
    Up,
    /// The arrow down.
    Down,
    /// The arrow to the left.
    Left,
    /// The arrow to the right.
    Right,
    /// A page up.
    PageUp,
    /// A page down.
    PageDown,
    /// To the first row.
    Home,
    /// To the last row.
    End,
    /// The next pane.
    Tab,
    /// The pane before.
    BackTab,
    /// Done with what is typed.
    Enter,
    /// Never mind.
    Escape,
    /// The last character goes.
    Backspace,
}

/// What a person wants to become of the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Finish the step in flight, checkpoint, hold.
    Pause,
    /// Go on after a pause.
    Resume,
    /// Finish the step in flight, checkpoint, stop.
    Drain,
}

impl Wish {
    /// The verb of `mcl` that does the same.
    pub const fn verb(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Drain => "drain",
        }
    }
}

/// What is to be done outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Leave the terminal.
    Quit,
    /// Tell the coordinator.
    Tell(Wish),
}

/// Something that comes.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A key was pressed.
    Key(Key),
    /// The terminal has this size: columns, rows.
    Size(u16, u16),
    /// Somebody looked.
    Seen(Box<Snapshot>),
    /// Nobody answered, for this reason.
    Away(String),
    /// The coordinator was told, or why it could not be.
    Told(Wish, Result<(), String>),
    /// It is so late: seconds since 1970.
    Clock(f64),
}

/// A list in the lower half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pane {
    /// Ranks, those that need a look first.
    Ranks,
    /// Worker machines.
    Workers,
    /// Generations, and what else happened.
    Generations,
    /// Visible checkpoints.
    Checkpoints,
    /// Jobs that wait, and those before.
    Queue,
}

impl Pane {
    /// In the order of the tabs.
    pub const ALL: [Self; 5] =
        [Self::Ranks, Self::Workers, Self::Generations, Self::Checkpoints, Self::Queue];

    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Ranks => "Ranks",
            Self::Workers => "Workers",
            Self::Generations => "Generations",
            Self::Checkpoints => "Checkpoints",
            Self::Queue => "Queue",
        }
    }

    fn beside(self, by: usize) -> Self {
        let at = Self::ALL.iter().position(|p| *p == self).unwrap_or(0);
        Self::ALL.get((at + by) % Self::ALL.len()).copied().unwrap_or(self)
    }
}

/// What lies over the view and takes the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    Nothing,
    Help,
    /// A filter is typed.
    Filter,
    /// Is this really wanted?
    Confirm(Wish),
}

/// Since when nobody answers, and why.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Away {
    pub(crate) since: f64,
    pub(crate) why: String,
}

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    pub(crate) snapshot: Snapshot,
    pub(crate) away: Option<Away>,
    pub(crate) now: f64,
    pub(crate) size: (u16, u16),
    pub(crate) pane: Pane,
    /// The chosen row, and the first one that is shown.
    pub(crate) row: usize,
    pub(crate) top: usize,
    pub(crate) filter: String,
    pub(crate) over: Over,
    /// What came of the last wish.
    pub(crate) note: Option<String>,
    pub(crate) colour: bool,
}

/// Characters that a filter has at most.
const FILTER: usize = 60;

impl View {
    /// Before anything was seen.
    pub fn new(now: f64, colour: bool) -> Self {
        Self {
            snapshot: Snapshot::default(),
            away: None,
            now,
            size: (80, 24),
            pane: Pane::Ranks,
            row: 0,
            top: 0,
            filter: String::new(),
            over: Over::Nothing,
            note: None,
            colour,
        }
    }

    fn rows(&self) -> usize {
        lists::items(&self.snapshot, self.pane, &self.filter, self.now).len()
    }

    /// Keeps the chosen row one that is there, and in sight.
    fn settle(mut self) -> Self {
        let page = crate::draw::page(self.size);
        let all = self.rows();
        self.row = self.row.min(all.saturating_sub(1));
        self.top = self.top.min(self.row).max((self.row + 1).saturating_sub(page.max(1)));
        self.top = self.top.min(all.saturating_sub(page));
        self
    }

    fn turn_to(self, pane: Pane) -> Self {
        Self { pane, row: 0, top: 0, ..self }
    }

    fn go(self, row: usize) -> Self {
        Self { row, ..self }.settle()
    }
}

/// What an event makes of a view, and what is to be done outside.
pub fn step(view: View, event: Event) -> (View, Option<Order>) {
    match event {
        Event::Key(key) => press(view, key),
        Event::Size(columns, rows) => (View { size: (columns, rows), ..view }.settle(), None),
        Event::Seen(snapshot) => (seen(view, *snapshot), None),
        Event::Away(why) => {
            let since = view.away.as_ref().map_or(view.now, |a| a.since);
            (View { away: Some(Away { since, why }), ..view }, None)
        }
        Event::Told(wish, result) => {
            let note = match (wish, result) {
                (Wish::Pause, Ok(())) => {
                    "pausing: the step in flight, a checkpoint, then it holds".to_owned()
                }
                (Wish::Resume, Ok(())) => "the run goes on".to_owned(),
                (Wish::Drain, Ok(())) => {
                    "draining: the step in flight, a checkpoint, then it stops".to_owned()
                }
                (wish, Err(why)) => format!("{}: {why}", wish.verb()),
            };
            (View { note: Some(note), ..view }, None)
        }
        Event::Clock(now) => (View { now, ..view }, None),
    }
}

/// A question about one run is none about the next.
fn seen(mut view: View, snapshot: Snapshot) -> View {
    if let Over::Confirm(wish) = view.over
        && snapshot.status.run_id != view.snapshot.status.run_id
    {
        view.over = Over::Nothing;
        view.note = Some(format!("{}: another run is run by now", wish.verb()));
    }
    View { snapshot, away: None, ..view }.settle()
}

fn press(view: View, key: Key) -> (View, Option<Order>) {
    if key == Key::Control('c') {
        return (view, Some(Order::Quit));
    }
    match view.over {
        Over::Nothing => command(View { note: None, ..view }, key),
        Over::Help => (View { over: Over::Nothing, ..view }, None),
        Over::Filter => (filter(view, key), None),
        Over::Confirm(wish) => {
            let view = View { over: Over::Nothing, ..view };
            match key {
                Key::Char('y' | 'Y') => tell(view, wish),
                _ => (View { note: Some(format!("{}: never mind", wish.verb())), ..view }, None),
            }
        }
    }
}

/// Only a coordinator can be told anything.
fn tell(view: View, wish: Wish) -> (View, Option<Order>) {
    let here = view.away.is_none() && matches!(view.snapshot.link, Link::Coordinator(_));
    if here {
        return (view, Some(Order::Tell(wish)));
    }
    let note = format!("{}: no coordinator answers", wish.verb());
    (View { note: Some(note), ..view }, None)
}

fn command(view: View, key: Key) -> (View, Option<Order>) {
    let (row, page) = (view.row, crate::draw::page(view.size).max(1));
    let view = match key {
        Key::Char('q') => return (view, Some(Order::Quit)),
        Key::Char('p') => return tell(view, Wish::Pause),
        Key::Char('r') => return tell(view, Wish::Resume),
        Key::Char('d') => View { over: Over::Confirm(Wish::Drain), ..view },
        Key::Char('?' | 'h') => View { over: Over::Help, ..view },
        Key::Char('/') => View { over: Over::Filter, ..view },
        Key::Escape => View { filter: String::new(), ..view }.settle(),
        Key::Tab | Key::Right => {
            let next = view.pane.beside(1);
            view.turn_to(next)
        }
        Key::BackTab | Key::Left => {
            let before = view.pane.beside(Pane::ALL.len() - 1);
            view.turn_to(before)
        }
        Key::Char(digit @ '1'..='5') => {
            let at = digit.to_digit(10).and_then(|d| usize::try_from(d).ok()).unwrap_or(1) - 1;
            let pane = Pane::ALL.get(at).copied().unwrap_or(view.pane);
            view.turn_to(pane)
        }
        Key::Up | Key::Char('k') => view.go(row.saturating_sub(1)),
        Key::Down | Key::Char('j') => view.go(row.saturating_add(1)),
        Key::PageUp => view.go(row.saturating_sub(page)),
        Key::PageDown => view.go(row.saturating_add(page)),
        Key::Home | Key::Char('g') => view.go(0),
        Key::End | Key::Char('G') => view.go(usize::MAX - 1),
        _ => view,
    };
    (view, None)
}

fn filter(mut view: View, key: Key) -> View {
    match key {
        Key::Enter => view.over = Over::Nothing,
        Key::Escape => {
            view.over = Over::Nothing;
            view.filter.clear();
        }
        Key::Backspace => drop(view.filter.pop()),
        Key::Char(c) if view.filter.chars().count() < FILTER => view.filter.push(c),
        _ => {}
    }
    view.row = 0;
    view.settle()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene;

    fn after(view: View, events: impl IntoIterator<Item = Event>) -> View {
        events.into_iter().fold(view, |view, event| step(view, event).0)
    }

    fn keys(text: &str) -> Vec<Event> {
        text.chars().map(|c| Event::Key(Key::Char(c))).collect()
    }

    fn seen(workers: u32) -> View {
        after(View::new(1000.0, false), [Event::Seen(Box::new(scene::training(workers)))])
    }

    #[test]
    fn keys_move_through_rows_and_stay_within() {
        let view = after(seen(100), keys("jjjk"));
        assert_eq!((view.row, view.top), (2, 0));
        let page = crate::draw::page((80, 24));
        let view = after(view, [Event::Key(Key::End)]);
        assert_eq!(view.row + 1, view.rows());
        assert_eq!(view.top + page, view.rows());
        let view = after(view, [Event::Key(Key::PageUp)]);
        assert_eq!(view.row + 1 + page, view.rows());
        let view = after(view, [Event::Key(Key::Home), Event::Key(Key::Up)]);
        assert_eq!((view.row, view.top), (0, 0));
        // The cluster shrinks under the chosen row.
        let end = after(view, [Event::Key(Key::End), Event::Seen(Box::new(scene::training(2)))]);
        assert_eq!((end.row + 1, end.top), (end.rows(), 0));
    }

    #[test]
    fn a_larger_terminal_shows_more_and_keeps_the_row() {
        let view = after(seen(100), [Event::Key(Key::End), Event::Size(200, 60)]);
        assert_eq!(view.row + 1, view.rows());
        assert_eq!(view.top + crate::draw::page((200, 60)), view.rows());
        let tiny = after(view, [Event::Size(1, 1)]);
        assert!(tiny.top <= tiny.row);
    }

    #[test]
    fn panes_go_round() {
        let mut view = seen(2);
        for pane in [Pane::Workers, Pane::Generations, Pane::Checkpoints, Pane::Queue, Pane::Ranks] {
            view = after(view, [Event::Key(Key::Tab)]);
            assert_eq!(view.pane, pane);
        }
        assert_eq!(after(view.clone(), [Event::Key(Key::BackTab)]).pane, Pane::Queue);
        assert_eq!(after(view, keys("3")).pane, Pane::Generations);
    }

    #[test]
    fn a_filter_takes_what_is_typed_and_goes_with_escape() {
        let view = after(seen(100), keys("/worker-042"));
        assert_eq!((view.over, view.filter.as_str(), view.rows()), (Over::Filter, "worker-042", 1));
        let view = after(view, [Event::Key(Key::Backspace), Event::Key(Key::Enter)]);
        assert_eq!((view.over, view.rows()), (Over::Nothing, 10));
        assert_eq!(after(view, [Event::Key(Key::Escape)]).filter, "");
        // q is a letter here, and a filter does not grow for ever.
        let long = after(seen(1), keys(&format!("/{}", "q".repeat(500))));
        assert_eq!(long.filter.len(), FILTER);
    }

    #[test]
    fn wishes_go_to_a_coordinator_and_a_drain_is_asked_for_twice() {
        let order = |view: &View, key| step(view.clone(), Event::Key(Key::Char(key))).1;
        let view = seen(2);
        assert_eq!(order(&view, 'p'), Some(Order::Tell(Wish::Pause)));
        assert_eq!(order(&view, 'r'), Some(Order::Tell(Wish::Resume)));
        assert_eq!(order(&view, 'd'), None);
        let asked = after(view.clone(), keys("d"));
        assert_eq!(order(&asked, 'y'), Some(Order::Tell(Wish::Drain)));
        assert_eq!(order(&asked, 'n'), None);
        assert_eq!(order(&asked, 'q'), None, "any other key: never mind");
        assert_eq!(after(asked.clone(), keys("n")).note.as_deref(), Some("drain: never mind"));
        assert_eq!(step(asked.clone(), Event::Key(Key::Control('c'))).1, Some(Order::Quit));
        // Another run is there by now.
        let mut next = scene::training(2);
        next.status.run_id = "next".to_owned();
        let asked = after(asked, [Event::Seen(Box::new(next))]);
        assert_eq!((order(&asked, 'y'), asked.over), (None, Over::Nothing));
        // Nobody is there to be told.
        let away = after(view.clone(), [Event::Away("refused".to_owned())]);
        assert_eq!(order(&away, 'p'), None);
        let files = Snapshot { link: Link::Files("runs/x".to_owned()), ..scene::training(2) };
        let files = after(view, [Event::Seen(Box::new(files))]);
        assert_eq!(order(&files, 'r'), None);
        assert!(after(files, keys("r")).note.unwrap().contains("no coordinator"));
    }

    #[test]
    fn a_coordinator_that_is_away_is_remembered_from_the_first_time_until_it_is_back() {
        let away = |why: &str| Event::Away(why.to_owned());
        let view = after(seen(2), [away("refused"), Event::Clock(1012.0), away("timed out")]);
        assert_eq!(view.away, Some(Away { since: 1000.0, why: "timed out".to_owned() }));
        assert_eq!(view.snapshot, scene::training(2), "what was seen last stays");
        let back = after(view, [Event::Seen(Box::new(scene::training(3)))]);
        assert_eq!(back.away, None);
    }

    #[test]
    fn q_and_control_c_leave() {
        assert_eq!(step(seen(2), Event::Key(Key::Char('q'))).1, Some(Order::Quit));
        for over in ["", "?", "/", "d"] {
            let view = after(seen(2), keys(over));
            assert_eq!(step(view, Event::Key(Key::Control('c'))).1, Some(Order::Quit), "{over}");
        }
        let help = after(seen(2), keys("?q"));
        assert_eq!(help.over, Over::Nothing);
    }
}
