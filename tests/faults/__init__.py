"""What happens when somebody dies, is stopped, or writes rubbish: one file per kind of misfortune."""
