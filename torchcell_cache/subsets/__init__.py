"""Which samples: expressions over stored columns, index files, splits, smaller stores."""
