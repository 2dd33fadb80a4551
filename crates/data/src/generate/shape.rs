//! The twelve kinds of objects: four shapes by three textures, as functions of a point.
//!
//! Points are in the object's own frame: turned, and scaled so that the shape fills about the unit
//! circle. Colour tells nothing: every object draws its two colours at random.

use mcl_types::SplitMix64;

/// Outline of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Circle,
    Square,
    Triangle,
    Cross,
}

/// Filling of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Texture {
    Plain,
    Striped,
    Checked,
}

pub(super) const SHAPES: [(Shape, &str); 4] = [
    (Shape::Circle, "circle"),
    (Shape::Square, "square"),
    (Shape::Triangle, "triangle"),
    (Shape::Cross, "cross"),
];

pub(super) const TEXTURES: [(Texture, &str); 3] =
    [(Texture::Plain, "plain"), (Texture::Striped, "striped"), (Texture::Checked, "checked")];

/// Classes there are.
pub(super) const CLASSES: usize = SHAPES.len() * TEXTURES.len();

impl Shape {
    /// Whether a point lies inside.
    fn holds(self, u: f64, v: f64) -> bool {
        match self {
            Self::Circle => u * u + v * v <= 0.85,
            Self::Square => u.abs().max(v.abs()) <= 0.74,
            // Equilateral, its centre of mass at the origin.
            Self::Triangle => v >= -0.5 && v + 1.732 * u.abs() <= 1.0,
            Self::Cross => u.abs().min(v.abs()) <= 0.3 && u.abs().max(v.abs()) <= 0.95,
        }
    }
}

/// One object to be drawn.
#[derive(Debug, Clone)]
pub(super) struct Object {
    pub(super) class: usize,
    shape: Shape,
    texture: Texture,
    centre: (f64, f64),
    radius: f64,
    /// Sine and cosine of the shape's turn, of the texture's.
    turn: (f64, f64),
    weave: (f64, f64),
    phase: (f64, f64),
    /// Half waves of the texture over the unit length.
    pitch: f64,
    colours: [[f64; 3]; 2],
    /// Width over height of the drawn shape, as a mild change of view.
    stretch: f64,
    /// Change of light over the unit length, across and down.
    shade: (f64, f64),
}

/// Half a turn, and more, of anything that turns.
fn angle(random: &mut SplitMix64) -> (f64, f64) {
    let a = random.range(0.0, std::f64::consts::TAU);
    (libm::sin(a), libm::cos(a))
}

impl Object {
    /// Draws everything but the colours' relation to the ground, which `colours` fix.
    pub(super) fn draw(
        random: &mut SplitMix64,
        class: usize,
        centre: (f64, f64),
        radius: f64,
        colours: [[f64; 3]; 2],
    ) -> Self {
        let (shape, _) = SHAPES[class / TEXTURES.len() % SHAPES.len()];
        let (texture, _) = TEXTURES[class % TEXTURES.len()];
        let pitch = match texture {
            Texture::Checked => random.range(1.4, 2.2),
            _ => random.range(1.8, 3.2),
        };
        Self {
            class,
            shape,
            texture,
            centre,
            radius,
            turn: angle(random),
            weave: angle(random),
            phase: (random.uniform(), random.uniform()),
            pitch,
            colours,
            stretch: random.range(0.8, 1.25),
            shade: (random.range(-60.0, 60.0), random.range(-60.0, 60.0)),
        }
    }

    /// Whether the object may touch the pixel at column `x`, row `y`.
    pub(super) fn is_near(&self, x: u32, y: u32) -> bool {
        let reach = self.radius + 1.0;
        (f64::from(x) + 0.5 - self.centre.0).abs() < reach
            && (f64::from(y) + 0.5 - self.centre.1).abs() < reach
    }

    /// The colour at a point of the picture, if the object is there.
    pub(super) fn at(&self, x: f64, y: f64) -> Option<[f64; 3]> {
        let (dx, dy) = ((x - self.centre.0) / self.radius, (y - self.centre.1) / self.radius);
        if dx * dx + dy * dy > 1.0 {
            return None;
        }
        let (sin, cos) = self.turn;
        // No corner may leave the circle, however the shape is stretched.
        let fit = 1.05 * self.stretch.max(1.0 / self.stretch);
        let u = (cos * dx + sin * dy) * fit * self.stretch;
        let v = (cos * dy - sin * dx) * fit / self.stretch;
        if !self.shape.holds(u, v) {
            return None;
        }
        let (sin, cos) = self.weave;
        let s = ((cos * dx + sin * dy) * self.pitch + 2.0 * self.phase.0).floor();
        let t = ((cos * dy - sin * dx) * self.pitch + 2.0 * self.phase.1).floor();
        let second = match self.texture {
            Texture::Plain => false,
            Texture::Striped => s.rem_euclid(2.0) >= 1.0,
            Texture::Checked => (s + t).rem_euclid(2.0) >= 1.0,
        };
        let light = dx * self.shade.0 + dy * self.shade.1;
        Some(self.colours[usize::from(second)].map(|c| c + light))
    }
}
