mod drivers;
