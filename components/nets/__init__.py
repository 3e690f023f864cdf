"""Networks in plain torch: shapes in, shapes out. They know neither losses nor noise schedules nor data sets."""
