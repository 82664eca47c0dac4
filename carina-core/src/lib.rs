//! The domain words of Carina, its engine, and the seams to storage.
