//! Mutations of volume images.
