from experiments.train.preemption import listen

if __name__ == "__main__":
    listen()  # before the seconds that importing torch takes
    from experiments.train.train import main

    main()
