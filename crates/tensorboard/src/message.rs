//! The few messages of TensorFlow's `event.proto` and `summary.proto` that TensorBoard needs of us.
//!
//! Field numbers are theirs. What they have besides is skipped when read and absent when written.

/// One record of an event file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    pub wall_time: f64,
    /// The step.
    #[prost(int64, tag = "2")]
    pub step: i64,
    /// What is told.
    #[prost(oneof = "What", tags = "3, 5, 7")]
    pub what: Option<What>,
}

/// What a record tells.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum What {
    /// First record of every file: `brain.Event:2`.
    #[prost(string, tag = "3")]
    FileVersion(String),
    /// Numbers and pictures.
    #[prost(message, tag = "5")]
    Summary(Summary),
    /// A writer began, or said that it goes back.
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

/// Numbers and pictures of one step.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Summary {
    /// One each.
    #[prost(message, repeated, tag = "1")]
    pub value: Vec<Value>,
}

/// A number or a picture, with its name.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Value {
    /// Its name; what stands before a slash is its group.
    #[prost(string, tag = "1")]
    pub tag: String,
    /// It.
    #[prost(oneof = "ValueKind", tags = "2, 4")]
    pub kind: Option<ValueKind>,
}

/// What a value is.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum ValueKind {
    /// A number.
    #[prost(float, tag = "2")]
    Scalar(f32),
    /// A picture.
    #[prost(message, tag = "4")]
    Image(Image),
}

/// A picture, as a PNG or JPEG file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Image {
    /// Pixels.
    #[prost(int32, tag = "1")]
    pub height: i32,
    /// Pixels.
    #[prost(int32, tag = "2")]
    pub width: i32,
    /// 3: red, green and blue.
    #[prost(int32, tag = "3")]
    pub colorspace: i32,
    /// The file.
    #[prost(bytes = "vec", tag = "4")]
    pub encoded: Vec<u8>,
}

/// What a writer says of itself.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SessionLog {
    /// See [`Status`].
    #[prost(enumeration = "Status", tag = "1")]
    pub status: i32,
}

/// What a writer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Status {
    /// Nothing known.
    Unspecified = 0,
    /// It begins at the record's step: what was written of that step and later ones does not stand.
    Start = 1,
}

impl Event {
    /// The first record of a file.
    pub(crate) fn version(wall_time: f64) -> Self {
        Self { wall_time, step: 0, what: Some(What::FileVersion("brain.Event:2".to_owned())) }
    }

    /// What was written of `step` and of later ones does not stand.
    pub fn start(wall_time: f64, step: u64) -> Self {
        let log = SessionLog { status: Status::Start.into() };
        Self { wall_time, step: number(step), what: Some(What::SessionLog(log)) }
    }

    /// Numbers of a step.
    pub fn scalars<'a>(wall_time: f64, step: u64, scalars: impl IntoIterator<Item = (&'a str, f64)>) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "the format holds single precision")]
        let value = |(tag, number): (&str, f64)| Value {
            tag: tag.to_owned(),
            kind: Some(ValueKind::Scalar(number as f32)),
        };
        let summary = Summary { value: scalars.into_iter().map(value).collect() };
        Self { wall_time, step: number(step), what: Some(What::Summary(summary)) }
    }

    /// A picture of a step.
    pub fn image(wall_time: f64, step: u64, tag: &str, image: Image) -> Self {
        let value = Value { tag: tag.to_owned(), kind: Some(ValueKind::Image(image)) };
        Self { wall_time, step: number(step), what: Some(What::Summary(Summary { value: vec![value] })) }
    }

    /// The step from which on nothing that was written before stands, where this says so.
    pub fn started_at(&self) -> Option<u64> {
        match &self.what {
            Some(What::SessionLog(log)) if log.status() == Status::Start => u64::try_from(self.step).ok(),
            _ => None,
        }
    }

    /// Its values; none where it tells something else.
    pub fn values(&self) -> &[Value] {
        match &self.what {
            Some(What::Summary(summary)) => &summary.value,
            _ => &[],
        }
    }
}

fn number(step: u64) -> i64 {
    i64::try_from(step).unwrap_or(i64::MAX)
}
